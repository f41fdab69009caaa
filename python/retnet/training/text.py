# SPDX-License-Identifier: Apache-2.0
"""Converts text to tokens and back: bytes, or a `tokenizer.json` of the library `tokenizers`.

A document is a whole text to train on or to score. A prompt is the beginning of a text. A tokenizer
may put special tokens around a text. A document keeps them all, and a prompt keeps only those
before the text.
"""

from __future__ import annotations

import codecs
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from retnet.training.sources import Sources
from retnet.weights import read_config, read_metadata

__all__ = [
    "TOKENIZER",
    "ByteTokenizer",
    "Decoder",
    "Document",
    "FileTokenizer",
    "Tokenizer",
    "as_tokens",
    "list_files",
    "tokenizer_for",
]

TOKENIZER = "tokenizer.json"
"""Name of the tokenizer file in the folder of a checkpoint."""
_REPLACEMENT = "\ufffd"  # stands for bytes that are not UTF-8
_LONGEST_WAIT = 32  # at most this many tokens are held back because they end within a character
_LONGEST_SILENCE = 16  # at most this many tokens are held back because they give no characters


class Document(NamedTuple):
    """A text as tokens.

    Attributes:
        ids: [N] uint8 (bytes) or int32.
        predicted_bytes: size in bytes of the text for all tokens except the first, which no
            context predicts. White space between tokens counts. Other text that the tokenizer drops
            does not count.
    """

    ids: Tensor
    predicted_bytes: int


class Decoder(Protocol):
    """Returns the characters of a text while its tokens arrive."""

    def __call__(self, token: int) -> str:
        """Returns the characters that the token completes, or "" if there are none yet."""
        ...

    def finish(self) -> str:
        """Returns the text that is held back, with U+FFFD for an incomplete character."""
        ...


class Tokenizer(Protocol):
    """The interface that the commands need from a tokenizer."""

    vocab_size: int
    unit: str

    def read(self, path: Path) -> Document:
        """Returns a file as tokens. Raises OSError, or ValueError for text that it cannot read."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the tokens of a prompt. Raises ValueError for text that it cannot read."""
        ...

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """Returns a decoder for the tokens after `prompt`. It does not repeat the prompt."""
        ...


def as_tokens(text: bytes) -> Tensor:
    """Returns one token per byte, as uint8 [len(text)]."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0).byte()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # an error of read(2) does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _utf8(prompt: str) -> bytes:
    """Returns the bytes of a prompt.

    It raises ValueError if the prompt is not UTF-8, because a command line may hold any bytes.
    """
    try:
        return prompt.encode()
    except UnicodeEncodeError as error:
        part = prompt[max(error.start - 9, 0) : error.start + 9]
        raise ValueError(
            f"prompt must be UTF-8, got {part!a} around character {error.start}"
        ) from error


class ByteTokenizer:
    """Makes each byte of UTF-8 a token."""

    vocab_size = 256
    unit = "byte"

    def read(self, path: Path) -> Document:
        """Returns the bytes of a file."""
        ids = as_tokens(_bytes_of(path))
        return Document(ids, max(len(ids) - 1, 0))

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the bytes of a text. Raises ValueError if it is not UTF-8."""
        return list(_utf8(text))

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """Returns a decoder for bytes. The prompt ends with a whole character and has no effect."""
        return _ByteDecoder()


class _ByteDecoder:
    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, token: int) -> str:
        # A model may have ids beyond the bytes. They become 0xFF, which is never UTF-8.
        return self._utf8.decode(bytes([min(token, 0xFF)]))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class FileTokenizer:
    """Reads text with a `tokenizer.json`.

    The file decides about normalization and special tokens. It may also contain settings for
    single calls (truncation, padding, dropout of merges). They are switched off, so that a whole
    text is read and always gives the same tokens.

    Attributes:
        path: path of the file.
        data: content of the file.

    Raises:
        ImportError: the library `tokenizers` is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is not a tokenizer.
    """

    unit = "token"

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError(
                f"{path}: reading it needs tokenizers (pip install tokenizers)"
            ) from error
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        self.path = path
        self.data = _bytes_of(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(self.data)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: must be a tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if isinstance(self._tokenizer.model, tokenizers.models.BPE):
            self._tokenizer.model.dropout = None
        # The ids may have gaps.
        self.vocab_size: int = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        # To find the special tokens before a text, process a text of one token from another
        # tokenizer. An empty text would not separate the tokens before it from those after it.
        one = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x"))
        around = self._tokenizer.post_process(one.encode("x"))
        special = around.special_tokens_mask
        self._start = around.ids[: special.index(0) if 0 in special else None]

    def read(self, path: Path) -> Document:
        """Returns the tokens of a UTF-8 file."""
        try:
            text = _bytes_of(path).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: must be UTF-8 for a tokenizer: {error}") from error
        return self.encode_document(text, str(path))

    def encode_document(self, text: str, name: str = "text") -> Document:
        """Returns a text as tokens, with all special tokens around it.

        Raises:
            ValueError: the tokenizer cannot encode the text. The message calls it `name`.
        """
        encoding = self._encode(text, name, special=True)
        ids = torch.tensor(encoding.ids, dtype=torch.int32)
        if len(ids) < 2:
            return Document(ids, 0)
        return Document(ids, self._predicted_bytes(text, int(ids[0]), encoding.offsets))

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the tokens of a prompt after the special tokens that start a document.

        Special tokens from the end of a document would tell the model that the text is over.

        Raises:
            ValueError: the text is not UTF-8, or the tokenizer cannot encode it.
        """
        _utf8(text)
        return self._start + self._encode(text, "prompt", special=False).ids

    def _encode(self, text: str, name: str, special: bool) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=special)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{name}: cannot be encoded by {self.path}: {error}") from error

    def _predicted_bytes(self, text: str, first: int, offsets: list[tuple[int, int]]) -> int:
        """Returns the number of bytes that the tokens after the first stand for.

        Args:
            text: the text.
            first: its first token.
            offsets: the range of characters of each token, (0, 0) for special tokens around it.
        """
        begin = end = min(offsets[0][1], offsets[1][0])
        dropped = 0
        for start, stop in offsets[1:]:
            if start > end:  # tokens or offsets may leave out white space
                dropped += len("".join(text[end:start].split()).encode())
            end = max(end, stop)
        predicted = len(text[begin:end].encode()) - dropped
        if self._tokenizer.decode([first]).endswith(_REPLACEMENT):  # it is a part of a character
            # The token is one byte such as <0xE2>, or it has one letter per byte.
            token = str(self._tokenizer.id_to_token(first))
            size = 1 if re.fullmatch("<0x[0-9A-F]{2}>", token) else len(token)
            predicted -= max(size - len(text[offsets[0][0] : begin].encode()), 0)
        return predicted

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """Returns a decoder for tokens. Special tokens give no characters."""
        return _FileDecoder(self._tokenizer, prompt)

    def check_same_tokens(self, other: FileTokenizer) -> None:
        """Checks that each id that both tokenizers have is the same token in both.

        Each of them may have more ids.

        Raises:
            ValueError: an id stands for another token.
        """
        ours, theirs = (set(x._tokenizer.get_vocab().values()) for x in (self, other))
        for token in sorted(ours & theirs):
            mine, other_one = (x._tokenizer.id_to_token(token) for x in (self, other))
            if mine != other_one:
                raise ValueError(
                    f"{self.path}: tokens must be those of {other.path}, "
                    f"got {mine!r} for id {token}, not {other_one!r}"
                )


class _FileDecoder:
    """Decodes the last tokens again with each new one.

    The text of a token depends on the token before it (spaces), and a character may need several
    tokens. The decoder therefore keeps the tokens of the last piece of text and decodes the next
    tokens after them.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token for token, known in added.items() if known.special}
        self._ids = [token for token in prompt if self._is_text(token)]
        self._given = len(
            self._ids
        )  # number of ids whose text was returned; later ids are held back
        self._text = self._decode()  # text of these ids

    def __call__(self, token: int) -> str:
        if not self._is_text(token):
            return ""
        self._ids.append(token)
        if not self._decode().endswith(_REPLACEMENT):
            return self._give()
        # More bytes may complete the character.
        waits = len(self._ids) - self._given < _LONGEST_WAIT
        return "" if waits else self._give(_REPLACEMENT)

    def finish(self) -> str:
        return self._give()

    def _is_text(self, token: int) -> bool:
        return token not in self._special and self._tokenizer.id_to_token(token) is not None

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._ids))

    def _give(self, end: str = "") -> str:
        """Returns the text since the last piece, without `end`, which is held back."""
        text = self._decode().removesuffix(end)
        if not text.startswith(self._text):
            # One bad byte may turn all bytes beside it into U+FFFD, even those of characters that
            # were already returned.
            self._ids, self._given, self._text = self._ids[self._given :], 0, ""
            text = self._decode().removesuffix(end)
        piece = text[len(self._text) :]
        if piece:
            self._ids = self._ids[self._given :]
            self._given = len(self._ids)
            self._text = self._decode().removesuffix(end)
        elif len(self._ids) - self._given > _LONGEST_SILENCE:
            self._ids.pop()  # keeps the text before it, because the next space may depend on it
        return piece


def tokenizer_for(named: str, folder: Path | None, command: str) -> Tokenizer:
    """Returns the named tokenizer, or that in the folder of the model, or one for bytes.

    The model may have more or fewer tokens than the tokenizer, because vocabularies are often
    padded. In that case a warning is printed. An id that the model does not have is refused when it
    occurs.

    Args:
        named: path of a tokenizer.json, or "".
        folder: checkpoint of the model that reads the tokens. None if the model is untrained.
        command: name of the command, for the warning.

    Raises:
        ValueError: the model has learned other tokens, or it needs a tokenizer and none is named.
    """
    if folder is None:
        return FileTokenizer(Path(named)) if named else ByteTokenizer()
    size = read_config(folder).vocab_size
    unit = read_metadata(folder).get("unit")  # what the model learned, if `train` wrote it
    path = folder / TOKENIZER
    inside = FileTokenizer(path) if path.exists() else None
    tokenizer = FileTokenizer(Path(named)) if named else inside
    if tokenizer is None:
        if unit == ByteTokenizer.unit or (unit is None and size == ByteTokenizer.vocab_size):
            return ByteTokenizer()
        what = "its model learned tokens"
        if unit is None:
            what = f"vocab_size = {size} is not that of bytes"
        raise ValueError(f"{folder}: holds no {TOKENIZER}, and {what}; name one with --tokenizer")
    if unit == ByteTokenizer.unit:
        raise ValueError(f"{tokenizer.path}: must not be used, the model of {folder} learned bytes")
    if inside is not None:
        tokenizer.check_same_tokens(inside)
    if size != tokenizer.vocab_size:
        print(
            f"retnet {command}: warning: vocab_size = {size} of the model is not that of the "
            f"tokenizer ({tokenizer.vocab_size})",
            file=sys.stderr,
        )
    return tokenizer


def list_files(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the files to read as text from files and folders. Warns about files left out.

    See `retnet.training.sources.Sources.files`.
    """
    sources = Sources({})
    found = sources.files(paths, "text")
    if str(sources):
        warnings.warn(f"left out: {sources}", stacklevel=2)
    return found
