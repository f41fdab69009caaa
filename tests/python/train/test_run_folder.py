# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: who may write to it, --resume, torchrun."""

import errno
import fcntl
import os
import re
import signal
import threading
import time
from contextlib import contextmanager

import pytest
import torch

import retnet
from retnet.training.lock import locked
from retnet.training.trainer import Trainer, train
from support.cases.cli import run
from support.cases.train import make_byte_model, make_trainer, steps

pytestmark = pytest.mark.usefixtures("one_thread")
LOCK = ".retnet.lock"


def is_free(folder):
    """Returns whether another open file can be locked, or whether the file does not exist."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


@contextmanager
def child(work):
    """Starts a process that calls `work`, says so, and waits to be killed."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            work()
            os.write(writer, b"x")
            time.sleep(100)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def hold(folder, text=b"process 12 on there since then\n"):
    """Locks a folder by the kernel alone."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, text)


# Who holds it


SECOND_RUNS = {
    "same path": ("--out", "run"),
    "another spelling": ("--out", "text_folder/../run/."),
    "link": ("--out", "link"),
    "resumed": ("--resume",),
    "bad data": ("--data", "none"),  # the error comes before data is read
}


@pytest.mark.parametrize("more", SECOND_RUNS.values(), ids=SECOND_RUNS)
def test_a_second_run_is_refused_at_once(more, command, tmp_path, capsys):
    (tmp_path / "text_folder").mkdir()
    (tmp_path / "link").symlink_to("run")
    out = tmp_path / "run"
    with child(lambda: hold(out)):
        assert run(*command, *more) == 1
        said = capsys.readouterr()
        assert said.err == (
            f"retnet train: {out}: in use by process 12 on there since then; "
            "wait until it ends, or choose another out\n"
        )
        assert not said.out and [path.name for path in out.iterdir()] == [LOCK]
    # The killed process left the file, which locks nothing.
    assert (out / LOCK).exists() and run(*command) == 0
    assert not (out / LOCK).exists()


def test_a_run_holds_its_folder_from_reading_to_the_end(command, tmp_path, monkeypatch):
    out, free = tmp_path / "run", []
    for place, name in ((retnet.training.command, "split"), (Trainer, "step"), (Trainer, "_save")):
        real = getattr(place, name)

        def watched(*args, real=real):
            text = (out / LOCK).read_text()
            assert re.fullmatch(rf"process {os.getpid()} on \S+ since 20\S+ \S+\n", text)
            free.append(is_free(out))
            return real(*args)

        monkeypatch.setattr(place, name, watched)
    assert run(*command) == 0
    assert free == [False] * 4 and is_free(out)


def test_the_library_is_refused_too(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.save()
    (tmp_path / "log.jsonl").write_text("{}\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with child(lambda: hold(tmp_path)):
        for call in (trainer.save, trainer.open_log, lambda: train(trainer)):
            with pytest.raises(BlockingIOError, match="in use by process 12 on there"):
                call()
        # The folder can be read at the same time.
        assert run("generate", tmp_path, "--prompt", "a", "--max_new_tokens", 1) == 0
    (tmp_path / LOCK).unlink()
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_train_holds_the_folder_of_a_trainer(tmp_path):
    trainer = make_trainer(tmp_path, steps=2)
    step, free = trainer.step, []
    trainer.step = lambda: (free.append(is_free(tmp_path)), step())
    assert train(trainer) == 0
    assert free == [False, False] and is_free(tmp_path)


def test_threads_of_one_process(tmp_path):
    """The thread that holds a folder may lock it again. Another thread may not."""
    refused = []

    def other():
        with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()} "), \
                locked(tmp_path):  # fmt: skip
            pass
        refused.append(True)

    with locked(tmp_path), locked(str(tmp_path)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert not is_free(tmp_path)
    assert refused and is_free(tmp_path) and not list(tmp_path.iterdir())


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """If the run is killed, its child lives on without the lock. If the child ends, the run keeps
    the lock.
    """

    lock = locked(tmp_path)

    def parent():
        lock.__enter__()
        if os.fork() == 0:
            (tmp_path / "part").write_text(str(os.getpid()))
            (tmp_path / "part").rename(tmp_path / "child")
            time.sleep(100)
            os._exit(0)
        while not (tmp_path / "child").exists():
            time.sleep(0.01)

    with child(parent):
        assert not is_free(tmp_path)
    assert is_free(tmp_path)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)  # it was alive

    with locked(tmp_path):
        process = os.fork()
        if process == 0:
            try:
                with pytest.raises(BlockingIOError), locked(tmp_path):
                    pass
            finally:
                os._exit(0)
        os.waitpid(process, 0)
        assert not is_free(tmp_path)


def test_a_folder_is_left_as_it_was(tmp_path):
    for folder, left in ((tmp_path / "a/b", tmp_path / "a"), (tmp_path, tmp_path / LOCK)):
        with pytest.raises(RuntimeError), locked(folder):
            assert (folder / LOCK).exists()
            raise RuntimeError
        assert tmp_path.exists() and not left.exists()
    with locked(tmp_path / "a/b"):
        (tmp_path / "a/kept").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_lock_on_a_file_that_its_last_holder_removed_does_not_count(tmp_path, monkeypatch):
    real, calls = fcntl.flock, []

    def flock(handle, how):
        if not calls:  # the last holder ends between open and flock
            (tmp_path / LOCK).unlink()
        calls.append(how)
        return real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        monkeypatch.undo()
        assert not is_free(tmp_path)


NO_LOCKS = {"ENOLCK": errno.ENOLCK, "ENOTSUP": errno.ENOTSUP, "ENOSYS": errno.ENOSYS}


@pytest.mark.parametrize("number", NO_LOCKS.values(), ids=NO_LOCKS)
def test_a_file_system_without_locks_warns(number, command, tmp_path, capsys, monkeypatch):
    def flock(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert run(*command) == 0
    warning = f"retnet: warning: {tmp_path}/run: the file system has no locks ("
    assert capsys.readouterr().err.count(warning) == 1


@pytest.mark.parametrize("name, number", [("flock", errno.EIO), ("open", errno.EROFS)])
def test_a_folder_that_cannot_be_locked_is_one_line(name, number, command, capsys, monkeypatch):
    def fail(*args):
        raise OSError(number, os.strerror(number), *([str(args[0])] if name == "open" else []))

    monkeypatch.setattr(fcntl if name == "flock" else os, name, fail)
    assert run(*command) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"retnet train: /.*/run/\.retnet\.lock: {os.strerror(number)}\n", said)


# --resume


MISTYPED = {
    "a letter": ("rum", r"/rum: there is no run to resume, rum does not exist \(did you mean 'run"),
    "above": ("rnus/one", r"/rnus/one: there is .*, rnus does not exist \(did you mean 'runs'\?"),
    "nothing near": ("xyz", r"/xyz: there is no run to resume, xyz does not exist$"),
}


@pytest.mark.parametrize("out, message", MISTYPED.values(), ids=MISTYPED)
def test_resume_of_a_folder_that_does_not_exist(out, message, command, tmp_path, capsys):
    for name in ("run", "runs"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run(*command, "--out", out, "--resume") == 1
    assert re.search(message, capsys.readouterr().err.strip())
    assert sorted(tmp_path.rglob("*")) == before


def test_resume_starts_where_no_checkpoint_was_written_yet(command, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1, "lo')  # as a kill leaves it
    assert run(*command, "--resume") == 0
    line = f"{tmp_path}/run: holds no checkpoint to resume; the run starts from the beginning\n"
    assert capsys.readouterr().out.startswith(line)
    assert steps(tmp_path / "run") == [1, 2]
    assert run(*command, "--resume", "--steps", 3) == 0
    assert "anew" not in capsys.readouterr().out and steps(tmp_path / "run") == [1, 2, 3]


# Several processes


@pytest.mark.parametrize("size", ["2", "8"])
def test_torchrun_is_refused(size, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert run(*command) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(rf"retnet train: WORLD_SIZE must be 1, got {size}: .*\n", said)
    assert not (tmp_path / "run").exists()


def test_a_process_group_is_refused(command, capsys, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert run(*command) == 1
    assert "WORLD_SIZE must be 1, got 2: " in capsys.readouterr().err


@pytest.mark.parametrize("size", ["1", ""])
def test_one_process_of_torchrun_trains(size, command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert run(*command) == 0


# A byte-order mark, as editors on Windows write


def test_settings_and_configuration_with_a_byte_order_mark(command, tmp_path):
    (tmp_path / "run.toml").write_text("lr = 2e-3\n", "utf-8-sig")
    assert run("train", "run.toml", *command[1:]) == 0
    assert "lr = 0.002\n" in (tmp_path / "run" / "run.toml").read_text()
    model = make_byte_model()
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text(), "utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf{")
    assert retnet.load(tmp_path / "model").config == model.config
    assert retnet.RetNetConfig.from_json("\ufeff" + model.config.to_json()) == model.config
