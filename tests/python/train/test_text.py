# SPDX-License-Identifier: Apache-2.0
"""FileTokenizer: whole documents, prompts to continue, and text that comes token by token."""

import random

import pytest

from retnet.training.text import ByteTokenizer, FileTokenizer

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import (  # noqa: E402
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

TEXT = "the cät, 𝄞 sat  on the mat. "


def byte_level(merges=(), **trims):
    """Returns a tokenizer like that of GPT-2: a letter for each byte, and pairs of them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*letters, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if trims:
        tokenizer.post_processor = processors.ByteLevel(**trims)
    return tokenizer


def byte_fallback(start="▁", silent=()):
    """Returns a tokenizer like that of Llama: letters, and bytes for other characters. `silent`
    letters have no text.
    """
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for letter in "▁abcdefghijklmnopqrstuvwxyz":
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(start), normalizers.Replace(" ", "▁")] if start else []
    )
    steps = [decoders.Replace(letter, "") for letter in silent]
    steps += [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return tokenizer


def metaspace():
    pieces = ["<unk>", "▁the", "▁", "▁on", *"abcdehmnostä𝄞.,"]
    tokenizer = Tokenizer(models.Unigram([(piece, -len(pieces) / 9) for piece in pieces], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def words(normalizer=None):
    vocabulary = ["?", "the", "cät,", "sat", "on", "mat.", "a", "b", "bär"]
    tokenizer = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


def word_pieces():
    pieces = ["[UNK]", "the", "c", "##ät", ",", "𝄞", "sat", "on", "m", "##at", "."]
    tokenizer = Tokenizer(models.WordPiece({p: n for n, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def suffixes():
    """Returns a tokenizer whose words end with </w>."""
    letters = sorted(set(TEXT) - {" "})
    vocabulary = {piece: n for n, piece in enumerate([*letters, *(f"{x}</w>" for x in letters)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    return tokenizer


def with_start(tokenizer):
    return with_template(tokenizer, "<s> $A")


def with_template(tokenizer, single):
    tokenizer.add_special_tokens(["<s>", "</s>"])
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


KINDS = {
    "bytes": byte_level,
    "pairs of bytes": lambda: byte_level([("t", "h"), ("th", "e"), ("Ã", "¤"), ("Ġ", "ð")]),
    "pairs across characters": lambda: byte_level([("¤", "t"), ("Ŀ", "Ħ"), ("c", "Ã")]),
    "byte fallback": byte_fallback,
    "byte fallback with <s>": lambda: with_start(byte_fallback()),
    "metaspace": metaspace,
    "words": words,
    "word pieces": word_pieces,
    "suffixes": suffixes,
}


@pytest.fixture
def load(tmp_path):
    """Returns a FileTokenizer of a Tokenizer of the library."""

    def load(tokenizer):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return FileTokenizer(tmp_path / "tokenizer.json")

    return load


# Documents


def settings_of_a_call(tokenizer, name):
    if name == "truncation":
        tokenizer.enable_truncation(5)
    elif name == "left truncation":
        tokenizer.enable_truncation(5, stride=2, direction="left")
    elif name == "padding":
        tokenizer.enable_padding(length=100)
    elif name == "left padding":
        tokenizer.enable_padding(direction="left", pad_to_multiple_of=64)
    elif name == "dropout":
        tokenizer.model.dropout = 1.0  # it has no merges
    return tokenizer


@pytest.mark.parametrize(
    "name", ["truncation", "left truncation", "padding", "left padding", "dropout"]
)
def test_settings_of_single_calls_change_no_text(name, load):
    make = KINDS["pairs of bytes"]
    plain, saved = load(make()), load(settings_of_a_call(make(), name))
    assert len(saved.encode_document(TEXT).ids) == 26
    assert saved.encode_document(TEXT).ids.tolist() == plain.encode_document(TEXT).ids.tolist()
    assert saved.encode_document(TEXT).predicted_bytes == len(TEXT.encode()) - len("the")
    assert saved.encode_prompt(TEXT) == plain.encode_prompt(TEXT)
    assert saved.data == saved.path.read_bytes() and name.split()[-1].encode() in saved.data


SPLIT = [("ð", "Ŀ")]  # the first two bytes of 𝄞
BYTES = {
    "bytes": (byte_level, "the", 2),
    "first of four bytes": (byte_level, "𝄞a", 4),
    "two of four bytes": (lambda: byte_level(SPLIT), "𝄞a", 3),
    "a letter and two bytes": (lambda: byte_level([*SPLIT, ("a", "ðĿ")]), "a𝄞a", 3),
    "the replacement character": (lambda: byte_level([("ï", "¿"), ("ï¿", "½")]), "\ufffda", 1),
    "<s> before": (lambda: with_start(byte_level(SPLIT)), "𝄞a", 5),
    "</s> after": (lambda: with_template(byte_level(), "$A </s>"), "abc", 2),
    "both": (lambda: with_template(byte_level(), "<s> $A </s>"), "abc", 3),
    "both around one": (lambda: with_template(words(), "<s> $A </s>"), "bär", 4),
    "</s> after one": (lambda: with_template(words(), "$A </s>"), "bär", 0),
    "both around nothing": (lambda: with_template(words(), "<s> $A </s>"), "", 0),
    "typed <s>": (lambda: with_template(byte_level(), "$A"), "<s>ab", 2),
    "trimmed offsets": (lambda: byte_level(trim_offsets=True), "a b  c ", 6),
    "a space put before": (byte_fallback, "hello é", 8),
    "fallback": (lambda: byte_fallback(start=""), "é!", 2),
    "spaces between words": (words, "bär sat on", 7),
    "spaces at the ends": (words, "  the cät,  on \n", 10),
    "lowercase, strip": (
        lambda: words(normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])),
        "  Bär SAT  ", 4,
    ),
    "one letter made of two": (lambda: byte_level_with(normalizers.NFKC()), "ﬁx", 4),
    "dropped text": (lambda: words(normalizers.Replace(Regex("[0-9é]+"), "")), "a 12é b the 7", 7),
    "one token": (words, "bär", 0),
    "no token": (words, "  ", 0),
}  # fmt: skip


def byte_level_with(normalizer):
    tokenizer = byte_level()
    tokenizer.normalizer = normalizer
    return tokenizer


@pytest.mark.parametrize("make, text, count", BYTES.values(), ids=BYTES)
def test_predicted_bytes(make, text, count, load, tmp_path):
    (tmp_path / "text").write_text(text, "utf-8")
    tokenizer = load(make())
    document = tokenizer.read(tmp_path / "text")
    assert document.ids.tolist() == make().encode(text).ids
    assert document.predicted_bytes == count


def test_text_that_cannot_be_encoded(load, tmp_path):
    """The tokenizer has no token for unknown words."""
    tokenizer = load(Tokenizer(models.WordLevel({"a": 0}, unk_token="?")))
    (tmp_path / "text").write_text("b")
    with pytest.raises(ValueError, match=r"text: cannot be encoded by .*tokenizer\.json: WordL"):
        tokenizer.read(tmp_path / "text")
    with pytest.raises(ValueError, match="prompt: cannot be encoded by"):
        tokenizer.encode_prompt("b")


# Prompts


def bert(kind, tokenizer):
    tokenizer.add_special_tokens(["<s>", "</s>"])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = kind(*ends)
    return tokenizer


def after_byte_level(single):
    tokenizer = with_template(words(), single)
    template = tokenizer.post_processor
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return tokenizer


PROMPTS = {  # in `words`, <s> is 9 and </s> is 10
    "none": (words, []),
    "<s> $A": (lambda: with_template(words(), "<s> $A"), [9]),
    "$A </s>": (lambda: with_template(words(), "$A </s>"), []),
    "<s> $A </s>": (lambda: with_template(words(), "<s> $A </s>"), [9]),
    "<s> <s> $A </s> </s>": (lambda: with_template(words(), "<s> <s> $A </s> </s>"), [9, 9]),
    "</s> $A </s>": (lambda: with_template(words(), "</s> $A </s>"), [10]),
    "Bert": (lambda: bert(processors.BertProcessing, words()), [9]),
    "Roberta": (lambda: bert(processors.RobertaProcessing, words()), [9]),
    "sequence": (lambda: after_byte_level("<s> $A </s>"), [9]),
}


@pytest.mark.parametrize("make, start", PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_has_nothing_after_its_text(make, start, load):
    tokenizer = load(make())
    assert tokenizer.encode_prompt("the bär sat") == [*start, 1, 8, 3]
    assert tokenizer.encode_prompt("") == tokenizer.encode_prompt("  ") == start
    document = tokenizer.encode_document("the bär sat").ids.tolist()
    assert document == make().encode("the bär sat").ids  # with the special tokens at its ends
    if make is not words:  # a special token that the user types is text
        assert tokenizer.encode_prompt("the </s>") == [*start, 1, 10]
        assert tokenizer.encode_prompt("<s> the <s> </s>") == [*start, 9, 1, 9, 10]


@pytest.mark.parametrize("kind", ["bytes", "tokens"])
def test_a_prompt_that_is_not_utf8(kind, load):
    tokenizer = ByteTokenizer() if kind == "bytes" else load(words())
    with pytest.raises(ValueError, match=r"^prompt must be UTF-8, got 'caf\\udce9 a' around char"):
        tokenizer.encode_prompt("caf\udce9 a")


# Decoding


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_make_the_decoded_text(kind, load):
    """This holds for every end of the prompt and for all special tokens that may be sampled."""
    library = KINDS[kind]()
    library.add_special_tokens(["<eot>"])
    library.add_tokens(["<tool>"])
    tokenizer, special = load(library), library.token_to_id("<eot>")
    ids = library.encode(TEXT).ids
    ids += [special] * 50 + [*ids[-3:], library.token_to_id("<tool>"), special, *ids[:3]]
    whole = library.decode(ids)
    assert special < tokenizer.vocab_size and len(whole) > 30 and "\ufffd" not in whole
    for length in range(len(ids)):
        before = library.decode(ids[:length])
        if not whole.startswith(before):  # within a character
            continue
        decode = tokenizer.decoder(ids[:length])
        pieces = [decode(token) for token in ids[length:]]
        pieces.append(decode.finish())
        assert "".join(pieces) == whole[len(before) :]
        if length == 0:  # they come as early as possible
            assert sum(map(bool, pieces)) > 12 and max(map(len, pieces)) <= 7
        assert decode.finish() == ""


def test_tokens_that_all_end_within_a_character(load):
    """However many there are, the text is right, and it comes before the end."""
    library = byte_level([("¤", "Ã")])
    ids = library.encode("ä" * 200).ids
    assert len(ids) == 201
    decode = load(library).decoder()
    pieces = [decode(token) for token in ids]
    assert "".join(pieces) + decode.finish() == "ä" * 200
    assert "".join(pieces[:100]) == "ä" * len("".join(pieces[:100])) and pieces[50:100] != [""] * 50


ODD = {  # tokens as text of the vocabulary, what is shown
    "half": (byte_level, ["a", "Ã"], "a\ufffd"),
    "half of four": (byte_level, ["a", "ð", "Ŀ", "Ħ"], "a\ufffd"),
    "amid": (byte_level, ["Ã", "a", "ÿ", "b"], "\ufffda\ufffdb"),
    "fallback half": (byte_fallback, ["▁", "a", "<0xC3>"], "a\ufffd"),
    "fallback amid": (byte_fallback, ["▁", "a", "<0xC3>", "b"], "a\ufffdb"),
    # The library would take back the whole é, but text that was shown cannot be taken back.
    "fallback after é": (byte_fallback, ["a", "<0xC3>", "<0xA9>", "<0xFF>", "b"], "aé\ufffdb"),
    "fallback line": (byte_fallback, ["a", "<0x0A>", "<0xE4>", "<0xBD>"], "a\n\ufffd\ufffd"),
    "no text": (lambda: byte_fallback(silent="xz"), [*"▁axz", "▁", "z", "b"], "a b"),
    "spaces before": (byte_fallback, ["▁", "▁", "a"], " a"),
    "unknown id": (byte_level, ["a", None, "b"], "ab"),
    "nothing": (byte_level, [], ""),
}


@pytest.mark.parametrize("make, tokens, text", ODD.values(), ids=ODD)
def test_odd_tokens_give_replacement_characters(make, tokens, text, load):
    tokenizer, library = load(make()), make()
    decode = tokenizer.decoder()
    ids = [10**6 if token is None else library.token_to_id(token) for token in tokens]
    assert "".join(map(decode, ids)) + decode.finish() == text


class Counting:
    """A tokenizer of the library that counts how many tokens each call decodes."""

    def __init__(self, library):
        self.library, self.lengths = library, []

    def decode(self, ids):
        self.lengths.append(len(ids))
        return self.library.decode(ids)

    def __getattr__(self, name):
        return getattr(self.library, name)


@pytest.mark.parametrize("count", [*range(28, 35), 500])
def test_tokens_without_text_change_nothing_and_cost_no_more_later(count, load):
    tokenizer = load(byte_fallback(silent="q"))
    counting = tokenizer._tokenizer = Counting(tokenizer._tokenizer)
    silence = "q" * count
    tokens = ["▁", "a", *silence, "▁", "b", *silence, "<0xE4>", "<0xBD>", "<0xA0>"]
    tokens += [*silence, "<0xE4>", *silence, "c"]
    decode = tokenizer.decoder()
    text = "".join(decode(counting.token_to_id(token)) for token in tokens)
    assert text + decode.finish() == "a b你\ufffdc"
    assert max(counting.lengths) <= 100


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "suffixes"])
def test_random_tokens_never_raise_and_cost_no_more_later(kind, load):
    tokenizer = load(KINDS[kind]())
    drawn = random.Random(1)
    ids = [drawn.randrange(tokenizer.vocab_size) for _ in range(2000)]
    library = tokenizer._tokenizer
    counting = tokenizer._tokenizer = Counting(library)
    decode = tokenizer.decoder()
    text = "".join(map(decode, ids)) + decode.finish()
    assert max(counting.lengths) <= 100 and len(counting.lengths) <= 4 * len(ids)
    if kind.startswith(("bytes", "pairs")):  # only the text of the library is right there
        assert text == library.decode(ids) and "\ufffd" in text
    if kind in ("metaspace", "words", "word pieces"):
        assert text == library.decode(ids)


def test_bytes_that_are_no_text():
    decode = ByteTokenizer().decoder()
    assert [decode(token) for token in (0xC3, 0xA9, 300, 0xF0, 0x9D)] == ["", "é", "\ufffd", "", ""]
    assert decode.finish() == "\ufffd" and decode.finish() == ""
    assert decode(ord("a")) == "a"


# Two tokenizers for one model


def test_the_same_ids_must_be_the_same_tokens(load, tmp_path):
    def save(name, tokens):
        path = tmp_path / name
        Tokenizer(models.WordLevel(tokens, unk_token="a")).save(str(path))
        return FileTokenizer(path)

    base = save("base", {"a": 0, "b": 1, "c": 2})
    for more_or_less in ({"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 2, "d": 3}, {"a": 0, "x": 9}):
        save("new", more_or_less).check_same_tokens(base)
    with pytest.raises(ValueError) as error:
        save("other", {"a": 0, "c": 1, "b": 2}).check_same_tokens(base)
    assert str(error.value) == (
        f"{tmp_path}/other: tokens must be those of {tmp_path}/base, got 'c' for id 1, not 'b'"
    )
