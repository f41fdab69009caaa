# SPDX-License-Identifier: Apache-2.0
"""What training and evaluation read: files, tokens, the split, windows, documents, scores."""

import math
import os

import pytest
import torch
from torch.nn import functional as F

from retnet.training.data import Documents, Windows, fingerprint, middles, split
from retnet.training.evaluation import describe_context, evaluate
from retnet.training.text import ByteTokenizer, FileTokenizer, as_tokens, list_files
from support.cases.train import TEXT, make_byte_model


def counting(*lengths):
    """Returns the documents 0 1 2 .., 100 101 .., 200 .."""
    return [torch.arange(100 * n, 100 * n + length).int() for n, length in enumerate(lengths)]


# Files and tokens


def test_files_are_sorted_and_hidden_ones_left_out(tmp_path):
    for name in ("b/z", "b/.hidden", "a", ".git/x", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.warns(UserWarning, match=r"c \(read once, as text\); .*pipe \(neither file nor"):
        found = list_files([tmp_path / "c", tmp_path])
    assert found == [tmp_path / name for name in ("c", "a", "b/z")]


def test_files_error(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
        list_files([tmp_path / "none"])
    with pytest.raises(ValueError, match="must hold files to read, got an empty folder"):
        list_files([tmp_path])

    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", deny)
    with pytest.raises(PermissionError, match="Permission denied"):
        list_files([tmp_path])


def test_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"\x00a\xff")
    document = ByteTokenizer().read(tmp_path / "a")
    assert document.ids.tolist() == [0, 97, 255] and document.predicted_bytes == 2
    assert as_tokens(b"").shape == (0,)
    decode = ByteTokenizer().decoder()
    assert [decode(token) for token in "é!".encode()] == ["", "é", "!"]
    assert decode(255) == "�"


@pytest.fixture
def tokenizer_file(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: n for n, word in enumerate(["?", "[BOS]", "der", "Bär", "sah", "den", "Käfer"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "plain.json"))
    tokenizer.add_special_tokens(["[BOS]"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", 1)]
    )
    tokenizer.save(str(tmp_path / "bos.json"))
    return tmp_path / "plain.json"


def test_tokenizer_file(tokenizer_file, tmp_path):
    (tmp_path / "text").write_text("Bär sah den Käfer", "utf-8")
    plain = FileTokenizer(tokenizer_file)
    document = plain.read(tmp_path / "text")
    assert plain.vocab_size == 7 and document.ids.tolist() == [3, 4, 5, 6]
    assert document.predicted_bytes == len(" sah den Käfer".encode())
    assert plain.encode_prompt("der Käfer") == [2, 6]
    decode = plain.decoder()
    assert "".join(map(decode, [2, 6])) == "der Käfer"
    # If a token precedes the text, all of the text is predicted.
    with_start = FileTokenizer(tmp_path / "bos.json").read(tmp_path / "text")
    assert with_start.ids.tolist() == [1, 3, 4, 5, 6] and with_start.predicted_bytes == 19


def test_vocabulary_with_gaps(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"?": 0, "der": 2, "Bär": 9}, unk_token="?")
    tokenizers.Tokenizer(model).save(str(tmp_path / "gaps.json"))
    assert FileTokenizer(tmp_path / "gaps.json").vocab_size == 10


def test_pairs_of_bytes(tmp_path):
    """The tokens of a character may be separate. The character appears with the last one."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=260,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 9, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = FileTokenizer(tmp_path / "tokenizer.json")
    text = "the cät 𝄞 sat"
    ids = ours.encode_prompt(text)
    assert ours.vocab_size == 260 and len(ids) < len(text.encode())
    decode = ours.decoder()
    pieces = [decode(token) for token in ids]
    assert "".join(pieces) == text and "" in pieces
    (tmp_path / "text").write_text(text)
    document = ours.read(tmp_path / "text")
    assert document.ids.tolist() == ids
    assert document.predicted_bytes == len(text.encode()) - len(pieces[0].encode())


def test_tokenizer_error(tokenizer_file, tmp_path):
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="text: must be UTF-8"):
        FileTokenizer(tokenizer_file).read(tmp_path / "text")
    with pytest.raises(ValueError, match=r"text: must be a tokenizer\.json"):
        FileTokenizer(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        FileTokenizer(tmp_path / "none")


# What is held out


@pytest.mark.parametrize(
    "count, share, left, held",
    [(20, 0.1, 18, [9, 19]), (4, 0.5, 2, [1, 3]), (3, 0.0, 3, [])],
)
def test_split_takes_whole_documents(count, share, left, held):
    documents = counting(*[3] * count)
    train, validation = split(documents, share)
    assert len(train) == left
    assert [int(ids[0]) // 100 for ids in validation] == held
    assert {int(ids[0]) for ids in (*train, *validation)} == {100 * n for n in range(count)}


def test_split_of_few_documents_takes_their_ends():
    train, validation = split(counting(20, 5), 0.1)
    assert [len(ids) for ids in train] == [18, 5]
    assert [ids.tolist() for ids in validation] == [[18, 19], []]


def test_middles():
    documents = counting(10, 3, 6)
    assert [ids.tolist() for ids in middles(documents, 6, 100)] == [
        [2, 3, 4, 5, 6, 7],
        [200, 201, 202, 203, 204, 205],
    ]
    assert [len(ids) for ids in middles(documents, 6, 7)] == [6]
    assert [len(ids) for ids in middles(documents, 20, 100)] == [10]
    assert middles([], 4, 100) == middles(counting(1), 4, 100) == []


def test_fingerprint_sees_tokens_and_borders():
    parts = [counting(4, 3), counting(3, 4), counting(4), [ids.long() for ids in counting(4, 3)]]
    assert len({fingerprint(documents) for documents in parts}) == 4
    assert fingerprint(counting(4, 3)) == fingerprint(counting(4, 3))


# Batches


def test_windows_reach_both_ends():
    windows = Windows(counting(5, 5), batch_size=64, seq_len=9)
    batch = windows.next()
    assert {int(row[0]) for row in batch.inputs} == {0, 1}
    assert torch.equal(batch.targets[:, :-1], batch.inputs[:, 1:])
    assert (batch.targets[:, -1] == -100).all() and batch.fresh is None
    with pytest.raises(ValueError, match="must hold at least seq_len = 9 tokens, got 8"):
        Windows(counting(8), batch_size=1, seq_len=9)


def test_documents_are_read_to_the_end():
    """There are two rows and documents of 8, 2 and 4 tokens. In each epoch, every token except the
    last of its document is an input once, in order, with the next token as its target.
    """
    documents = counting(8, 2, 4)
    source = Documents(documents, batch_size=2, seq_len=3)
    reading, seen = [None, None], []
    for _ in range(60):
        batch = source.next()
        for row in range(2):
            known = batch.targets[row] != -100
            inputs, targets = batch.inputs[row][known], batch.targets[row][known]
            assert torch.equal(inputs + 1, targets)
            assert known.tolist() == sorted(known.tolist(), reverse=True)
            if batch.fresh[row]:
                assert reading[row] is None
                seen.append(int(inputs[0]) // 100)
                assert inputs[0] == 100 * seen[-1]
            else:
                assert inputs[0] == reading[row]
            last = int(targets[-1])
            reading[row] = None if last == int(documents[last // 100][-1]) else last
    epochs = [seen[n : n + 3] for n in range(0, len(seen) - 2, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("kind", [Windows, Documents])
def test_batches_go_on_where_they_stopped(kind):
    documents = counting(30, 20, 10)
    source = kind(documents, 2, 4, seed=5)
    for _ in range(7):
        source.next()
    state = {name: torch.clone(x) if torch.is_tensor(x) else x
             for name, x in source.state_dict().items()}  # fmt: skip
    expected = [source.next() for _ in range(20)]
    other = kind(documents, 2, 4, seed=6)
    other.load_state_dict(state)
    for a in expected:
        b = other.next()
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


# Scores


def nats_of(model, ids):
    """Returns -sum ln p of every token except the first, in one pass."""
    logits = model(ids[None, :-1].long()).logits[0]
    return F.cross_entropy(logits, ids[1:].long(), reduction="sum").item()


def test_carried_state_sees_the_whole_document(monkeypatch):
    monkeypatch.setattr("retnet.training.evaluation._TOKENS", 50)
    monkeypatch.setattr("retnet.training.evaluation._ROWS", 3)
    model = make_byte_model().double()
    documents = [as_tokens(TEXT[n:][:length]) for n, length in enumerate([131, 2, 1, 0, 64, 65])]
    score = evaluate(model, documents)
    assert score.tokens == 130 + 1 + 63 + 64
    want = sum(nats_of(model, ids) for ids in documents if len(ids) > 1)
    assert score.nats == pytest.approx(want, rel=1e-9)
    assert score.loss == pytest.approx(want / score.tokens)
    assert "all of the document" in describe_context(None)


@pytest.mark.parametrize("window", [2, 5, 8, 200])
def test_windows_see_what_they_say(window):
    model = make_byte_model().double()
    ids = as_tokens(TEXT[:60])
    score = evaluate(model, [ids, as_tokens(b"ab")], window)
    nats, least = nats_of(model, as_tokens(b"ab")), window // 2 + 1
    for target in range(1, 60):  # each token is scored once, after at least `least` tokens
        begin = next(s for s in range(0, 99, window - window // 2) if s + window >= target)
        assert target - begin <= window and (begin == 0 or target - begin >= least)
        logits = model(ids[None, begin:target].long()).logits[0, -1]
        nats -= logits.log_softmax(-1)[int(ids[target])].item()
    assert score.tokens == 60 and score.nats == pytest.approx(nats, rel=1e-9)
    assert f"{least} to {window} tokens" in describe_context(window)


def test_evaluate_error():
    with pytest.raises(ValueError, match="window must be >= 2, got 1"):
        evaluate(make_byte_model(), [as_tokens(TEXT)], 1)
    with pytest.raises(ValueError, match="must hold a token to predict"):
        evaluate(make_byte_model(), [as_tokens(b"a")])
    assert math.isfinite(evaluate(make_byte_model(), [as_tokens(b"ab")]).loss)
