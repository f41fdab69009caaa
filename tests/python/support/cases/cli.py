# SPDX-License-Identifier: Apache-2.0
"""Runs of the command `retnet`."""

import json
import os
import subprocess
import sys

from retnet.cli import main
from support.cases.train import MODEL


def write_toml(folder, **changes):
    settings = {"data": [f"{folder}/text"], "out": f"{folder}/run", "steps": 6, "batch_size": 2,
                "seq_len": 32, "lr": 1e-2, "device": "cpu", **changes}  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    lines += ["[model]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in MODEL.items())]
    (folder / "run.toml").write_text("".join(lines))


def losses(folder):
    """Returns the loss of every step. The last line of a run that is writing may be incomplete."""
    lines = (folder / "log.jsonl").read_text().rpartition("\n")[0].splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def run(*arguments):
    return main([str(argument) for argument in arguments])


def start(*arguments, **options):
    """Starts the command in a process of its own, with one thread like `run` here."""
    return subprocess.Popen(
        [sys.executable, "-m", "retnet", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,
    )
