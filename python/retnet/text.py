# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back: bytes, or any `tokenizer.json` of the library `tokenizers`."""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from retnet.sources import Sources

__all__ = ["ByteTokenizer", "Document", "FileTokenizer", "Tokenizer", "as_tokens", "list_files"]


class Document(NamedTuple):
    """A text as tokens.

    Attributes:
        ids: [N] uint8 (bytes) or int32.
        predicted_bytes: of the tokens after the first, which no context predicts.
    """

    ids: Tensor
    predicted_bytes: int


class Tokenizer(Protocol):
    """What the commands need of a tokenizer."""

    vocab_size: int
    unit: str

    def read(self, path: Path) -> Document:
        """Returns a file as tokens; raises OSError or, for text it cannot read, ValueError."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a prompt."""
        ...

    def decoder(self) -> Callable[[int], str]:
        """Returns a function that takes one token after the other and gives the text so far new."""
        ...


def as_tokens(text: bytes) -> Tensor:
    """One token a byte: [len(text)] uint8."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0).byte()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # one of read(2) does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


class ByteTokenizer:
    """One token a byte of UTF-8."""

    vocab_size = 256
    unit = "byte"

    def read(self, path: Path) -> Document:
        """Returns the bytes of a file."""
        ids = as_tokens(_bytes_of(path))
        return Document(ids, max(len(ids) - 1, 0))

    def encode(self, text: str) -> list[int]:
        """Returns the bytes of a text."""
        return list(text.encode())

    def decoder(self) -> Callable[[int], str]:
        """Returns a function from a byte to the characters that it completes."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda token: utf8.decode(bytes([token]))


class FileTokenizer:
    """A `tokenizer.json`; it alone decides about special tokens around a text.

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
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: must be a tokenizer.json: {error}") from error
        self._new_decoder = tokenizers.decoders.DecodeStream
        # The ids may have gaps.
        self.vocab_size: int = max(self._tokenizer.get_vocab().values(), default=-1) + 1

    def read(self, path: Path) -> Document:
        """Returns the tokens of a UTF-8 file."""
        try:
            text = _bytes_of(path).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: must be UTF-8 for a tokenizer: {error}") from error
        encoding = self._tokenizer.encode(text)
        first = text[: encoding.offsets[0][1]] if encoding.ids else text
        ids = torch.tensor(encoding.ids, dtype=torch.int32)
        return Document(ids, len(text.encode()) - len(first.encode()))

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text."""
        return list(self._tokenizer.encode(text).ids)

    def decoder(self) -> Callable[[int], str]:
        """Returns a function from a token to the characters that it completes."""
        stream = self._new_decoder(skip_special_tokens=True)
        return lambda token: stream.step(self._tokenizer, token) or ""


def list_files(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the files to read as text of files and folders; see `retnet.sources.Sources.files`.

    Warns of what is left out.
    """
    sources = Sources({})
    found = sources.files(paths, "text")
    if str(sources):
        warnings.warn(f"left out: {sources}", stacklevel=2)
    return found
