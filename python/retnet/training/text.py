# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back: bytes, or any `tokenizer.json` of the library `tokenizers`.

A document is a whole text to learn from or to score; a prompt is the beginning of one. A tokenizer
may put special tokens around a text: a document keeps them all, a prompt has only those that stand
before it.
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
"""The file of the tokenizer in the folder of a checkpoint."""
_REPLACEMENT = "\ufffd"  # what stands for bytes that are no UTF-8
_LONGEST_WAIT = 32  # most tokens that are held back because they end within a character
_LONGEST_SILENCE = 16  # most tokens that are held back because they give no characters


class Document(NamedTuple):
    """A text as tokens.

    Attributes:
        ids: [N] uint8 (bytes) or int32.
        predicted_bytes: of the text that the tokens after the first stand for. No context predicts
            the first. White space between tokens counts, other text that the tokenizer drops does
            not.
    """

    ids: Tensor
    predicted_bytes: int


class Decoder(Protocol):
    """Gives the characters of a text as its tokens come."""

    def __call__(self, token: int) -> str:
        """Returns the characters that the token completes, "" if there are none yet."""
        ...

    def finish(self) -> str:
        """Returns what is held back: U+FFFD for an incomplete character."""
        ...


class Tokenizer(Protocol):
    """What the commands need of a tokenizer."""

    vocab_size: int
    unit: str

    def read(self, path: Path) -> Document:
        """Returns a file as tokens; raises OSError or, for text it cannot read, ValueError."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the tokens of a text to continue; raises ValueError for text it cannot read."""
        ...

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """Returns what decodes the tokens after `prompt`, whose own characters it does not give."""
        ...


def as_tokens(text: bytes) -> Tensor:
    """One token a byte: [len(text)] uint8."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0).byte()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # one of read(2) does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _utf8(prompt: str) -> bytes:
    """The bytes of a prompt; the command line may hold bytes that are no text."""
    try:
        return prompt.encode()
    except UnicodeEncodeError as error:
        part = prompt[max(error.start - 9, 0) : error.start + 9]
        raise ValueError(
            f"prompt must be UTF-8, got {part!a} around character {error.start}"
        ) from error


class ByteTokenizer:
    """One token a byte of UTF-8."""

    vocab_size = 256
    unit = "byte"

    def read(self, path: Path) -> Document:
        """Returns the bytes of a file."""
        ids = as_tokens(_bytes_of(path))
        return Document(ids, max(len(ids) - 1, 0))

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the bytes of a text; raises ValueError where it is not UTF-8."""
        return list(_utf8(text))

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """Returns what decodes bytes; a prompt is whole text and changes nothing."""
        return _ByteDecoder()


class _ByteDecoder:
    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, token: int) -> str:
        # A model may know ids beyond the bytes: like 0xFF, they are never UTF-8.
        return self._utf8.decode(bytes([min(token, 0xFF)]))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class FileTokenizer:
    """A `tokenizer.json`.

    It decides about normalization and special tokens. Settings of single calls that it may carry
    (truncation, padding, dropout of merges) are switched off: all of a text is read, and always
    as the same tokens.

    Attributes:
        path: of the file.
        data: its bytes.

    Raises:
        ImportError: the library is not installed.
        FileNotFoundError: no such file.
        ValueError: not a tokenizer.
    """

    unit = "token"

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError(f"{path}: to read it, pip install tokenizers") from error
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
        # What stands before a text: the special tokens before the one token of a text of another
        # tokenizer. An empty text of this one would not tell before from after.
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
        """Returns a text as tokens, with all special tokens that belong around it.

        Raises:
            ValueError: text that the tokenizer cannot encode; the message calls it `name`.
        """
        encoding = self._encode(text, name, special=True)
        ids = torch.tensor(encoding.ids, dtype=torch.int32)
        if len(ids) < 2:
            return Document(ids, 0)
        return Document(ids, self._predicted_bytes(text, int(ids[0]), encoding.offsets))

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the tokens of a text to continue, and before them the special ones of a document.

        Special tokens that a document has at its end would tell the model that it is over.

        Raises:
            ValueError: text that is not UTF-8 or that the tokenizer cannot encode.
        """
        _utf8(text)
        return self._start + self._encode(text, "prompt", special=False).ids

    def _encode(self, text: str, name: str, special: bool) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=special)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{name}: cannot be encoded by {self.path}: {error}") from error

    def _predicted_bytes(self, text: str, first: int, offsets: list[tuple[int, int]]) -> int:
        """Args: text, its first token, the characters of each token; (0, 0) for those around it."""
        begin = end = min(offsets[0][1], offsets[1][0])
        dropped = 0
        for start, stop in offsets[1:]:
            if start > end:  # white space may be left out between tokens, or of offsets alone
                dropped += len("".join(text[end:start].split()).encode())
            end = max(end, stop)
        predicted = len(text[begin:end].encode()) - dropped
        if self._tokenizer.decode([first]).endswith(_REPLACEMENT):  # bytes of a split character
            token = str(
                self._tokenizer.id_to_token(first)
            )  # one byte as <0xE2>, or a letter for each
            size = 1 if re.fullmatch("<0x[0-9A-F]{2}>", token) else len(token)
            predicted -= max(size - len(text[offsets[0][0] : begin].encode()), 0)
        return predicted

    def decoder(self, prompt: Sequence[int] = ()) -> Decoder:
        """Returns what decodes tokens; special tokens give no characters."""
        return _FileDecoder(self._tokenizer, prompt)

    def check_same_tokens(self, other: FileTokenizer) -> None:
        """Checks that ids which both know are the same tokens; either may know more.

        Raises:
            ValueError: an id that stands for another token.
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

    How a token reads depends on the one before it (spaces), and a character may need several. So
    the tokens of the last piece of text are kept, for what follows to be decoded after them.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token for token, known in added.items() if known.special}
        self._ids = [token for token in prompt if self._is_text(token)]
        self._given = len(self._ids)  # of the ids; those after them are held back
        self._text = self._decode()  # of these

    def __call__(self, token: int) -> str:
        if not self._is_text(token):
            return ""
        self._ids.append(token)
        if not self._decode().endswith(_REPLACEMENT):
            return self._give()
        # More bytes may make a character of it.
        waits = len(self._ids) - self._given < _LONGEST_WAIT
        return "" if waits else self._give(_REPLACEMENT)

    def finish(self) -> str:
        return self._give()

    def _is_text(self, token: int) -> bool:
        return token not in self._special and self._tokenizer.id_to_token(token) is not None

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._ids))

    def _give(self, end: str = "") -> str:
        """The text since the last piece, without `end`, which is held back."""
        text = self._decode().removesuffix(end)
        if not text.startswith(self._text):
            # One bad byte may make U+FFFD of all bytes beside it, of characters given before too.
            self._ids, self._given, self._text = self._ids[self._given :], 0, ""
            text = self._decode().removesuffix(end)
        piece = text[len(self._text) :]
        if piece:
            self._ids = self._ids[self._given :]
            self._given = len(self._ids)
            self._text = self._decode().removesuffix(end)
        elif len(self._ids) - self._given > _LONGEST_SILENCE:
            self._ids.pop()  # not the last text: the next space may belong after it
        return piece


def tokenizer_for(named: str, folder: Path | None, command: str) -> Tokenizer:
    """What a command reads text with: the tokenizer named, or that of the model's folder, or bytes.

    Args:
        named: path of a tokenizer.json, or "".
        folder: checkpoint of the model that reads the tokens; None where it has learned nothing.
        command: for the warning where the model knows more or fewer tokens. It may: the vocabulary
            of a model is often filled up, and ids that it does not know are refused where one is.

    Raises:
        ValueError: the model has learned other tokens, or none is named where it needs one.
    """
    if folder is None:
        return FileTokenizer(Path(named)) if named else ByteTokenizer()
    size = read_config(folder).vocab_size
    unit = read_metadata(folder).get("unit")  # that it learned, where `train` wrote it
    path = folder / TOKENIZER
    inside = FileTokenizer(path) if path.exists() else None
    tokenizer = FileTokenizer(Path(named)) if named else inside
    if tokenizer is None:
        if unit == ByteTokenizer.unit or (unit is None and size == ByteTokenizer.vocab_size):
            return ByteTokenizer()
        what = "its model learned tokens"
        if unit is None:
            what = f"vocab_size = {size} is not that of bytes"
        raise ValueError(f"{folder}: holds no {TOKENIZER}, and {what}; name one by --tokenizer")
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
    """Returns the files to read as text of files and folders, and warns of what is left out.

    See `retnet.training.sources.Sources.files`.
    """
    sources = Sources({})
    found = sources.files(paths, "text")
    if str(sources):
        warnings.warn(f"left out: {sources}", stacklevel=2)
    return found
