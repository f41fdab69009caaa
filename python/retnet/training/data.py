# SPDX-License-Identifier: Apache-2.0
"""Batches for training: random windows of a text, or documents read from start to end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.nn.loss import IGNORE_INDEX

__all__ = ["Batch", "Batches", "Documents", "Windows", "fingerprint", "middles", "split"]


class Batch(NamedTuple):
    """The tokens that one forward pass reads.

    Attributes:
        inputs: [B, T] int64.
        targets: [B, T] int64, the token after each input, or -100 if there is none.
        fresh: [B] bool, True for batch entries that start a document. None if the entries are
            independent.
    """

    inputs: Tensor
    targets: Tensor
    fresh: Tensor | None = None


class Batches(Protocol):
    """An endless source of batches that can continue where it stopped."""

    def next(self) -> Batch:
        """Returns the next batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the tensors and numbers that `load_state_dict` needs to continue."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        ...


class Windows:
    """Windows of `seq_len` tokens that start at random places.

    The documents are joined to one text, and a window may start anywhere in it.

    Args:
        documents: [N_i] integer tensors.
        batch_size: B, the number of windows in a batch.
        seq_len: T, the number of tokens in a window. All tokens except the last have a target.
        seed: seed for the random starts.

    Raises:
        ValueError: the text is shorter than one window.
    """

    def __init__(
        self, documents: Sequence[Tensor], batch_size: int, seq_len: int, seed: int = 0
    ) -> None:
        self.text = torch.cat(list(documents))
        self.batch_size, self.seq_len = batch_size, seq_len
        self.generator = torch.Generator().manual_seed(seed)
        if len(self.text) < seq_len:
            raise ValueError(
                f"data: text to train on must hold at least seq_len = {seq_len} tokens, "
                f"got {len(self.text)}"
            )

    def next(self) -> Batch:
        """Returns the next batch, without `fresh`."""
        last = len(self.text) - self.seq_len
        starts = torch.randint(last + 1, (self.batch_size, 1), generator=self.generator)
        inputs = self.text[starts + torch.arange(self.seq_len)].long()
        return Batch(inputs, F.pad(inputs[:, 1:], (0, 1), value=IGNORE_INDEX))

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the random generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.generator.set_state(state["generator"])


class Documents:
    """`batch_size` documents side by side, each read in segments of `seq_len` tokens to its end.

    A batch entry whose document has ended continues with the next document of a shuffled order.
    The order is shuffled again in every epoch. The last segment of a document is padded with
    tokens 0 that have no target.

    Args:
        documents: [N_i] integer tensors, N_i >= 2.
        batch_size: B, the number of documents that are read side by side.
        seq_len: T, the number of tokens in a segment. Every token except the last of a document
            has a target.
        seed: seed for the order.
    """

    def __init__(
        self, documents: Sequence[Tensor], batch_size: int, seq_len: int, seed: int = 0
    ) -> None:
        self.documents = documents
        self.seq_len = seq_len
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64)
        self.taken = 0
        self.entries = torch.full(
            (batch_size, 2), -1
        )  # document, number of its tokens read; -1: none yet

    def next(self) -> Batch:
        """Returns the next segment of each batch entry."""
        batch_size = len(self.entries)
        inputs = torch.zeros(batch_size, self.seq_len, dtype=torch.int64)
        targets = torch.full_like(inputs, IGNORE_INDEX)
        fresh = torch.zeros(batch_size, dtype=torch.bool)
        for entry, (document, read) in enumerate(self.entries.tolist()):
            if document < 0 or read >= len(self.documents[document]) - 1:
                document, read, fresh[entry] = self._draw(), 0, True
            segment = self.documents[document][read : read + self.seq_len + 1].long()
            inputs[entry, : len(segment) - 1] = segment[:-1]
            targets[entry, : len(segment) - 1] = segment[1:]
            self.entries[entry] = torch.tensor([document, read + self.seq_len])
        return Batch(inputs, targets, fresh)

    def _draw(self) -> int:
        if self.taken == len(self.order):
            self.order = torch.randperm(len(self.documents), generator=self.generator)
            self.taken = 0
        self.taken += 1
        return int(self.order[self.taken - 1])

    def state_dict(self) -> dict[str, Any]:
        """Returns the order, the position in it, and the position of each entry in its
        document.
        """
        return {
            "generator": self.generator.get_state(),
            "order": self.order,
            "taken": self.taken,
            "rows": self.entries.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.generator.set_state(state["generator"])
        self.order, self.taken = state["order"], state["taken"]
        self.entries = state["rows"].clone()


def split(documents: Sequence[Tensor], share: float) -> tuple[list[Tensor], list[Tensor]]:
    """Splits off a `share` of the text. Returns the rest and the part that was split off.

    - If there are at least 1 / share documents, it splits off every (1 / share)-th document.
    - If there are fewer, it splits off the last `share` of the tokens of each.

    Args:
        documents: [N_i] integer tensors, in the order of their paths.
        share: 0 (nothing is split off) to 0.5.
    """
    if share == 0:
        return list(documents), []
    every = round(1 / share)
    if len(documents) >= every:
        left = [ids for n, ids in enumerate(documents, 1) if n % every]
        return left, list(documents[every - 1 :: every])
    cuts = [len(ids) - int(share * len(ids)) for ids in documents]
    pairs = list(zip(documents, cuts, strict=True))
    return [ids[:cut] for ids, cut in pairs], [ids[cut:] for ids, cut in pairs]


def middles(documents: Sequence[Tensor], length: int, limit: int) -> list[Tensor]:
    """Returns the middle `length` tokens of evenly chosen documents.

    It returns at most `limit` tokens, except that it always takes one document. If all documents
    are shorter than `length`, it returns the longest one whole, unless that has fewer than two
    tokens.
    """
    long = [ids for ids in documents if len(ids) >= length]
    if not long:
        longest = max(documents, key=len, default=torch.empty(0))
        return [longest] if len(longest) > 1 else []
    count = max(min(len(long), limit // length), 1)
    picked = [long[n * len(long) // count] for n in range(count)]
    return [ids[(len(ids) - length) // 2 :][:length] for ids in picked]


def fingerprint(documents: Sequence[Tensor]) -> str:
    """Returns a digest of the tokens and of the ends of the documents."""
    digest = hashlib.sha256()
    for ids in documents:
        digest.update(f"{len(ids)} {ids.dtype} ".encode())
        digest.update(ids.contiguous().numpy().data)
    return digest.hexdigest()
