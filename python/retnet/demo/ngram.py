# SPDX-License-Identifier: Apache-2.0
"""Byte bigram and trigram models, which are the yardstick of the demo."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["NGram"]

_BYTES = 256


class NGram:
    """An interpolated n-gram model of bytes, n = 2 or 3, with Witten-Bell smoothing.

    p_n(c | h) = (count(h c) + kinds(h) p_{n-1}(c | h')) / (count(h) + kinds(h)), where kinds(h) is
    the number of different bytes seen after h and h' is h without its first byte; p_0 = 1/256.
    A context that was never seen has p_n = p_{n-1}. (Witten and Bell 1991; Chen and Goodman 1998,
    2.6.)

    Args:
        files: the text to count. No n-gram crosses from one file to the next.
        order: n.
    """

    def __init__(self, files: Iterable[bytes], order: int) -> None:
        if order not in (2, 3):
            raise ValueError(f"NGram: order must be 2 or 3, got {order}")
        self.order = order
        self._counts = [np.zeros((_BYTES**n, _BYTES), np.int32) for n in range(order)]
        for text in files:
            data = np.frombuffer(text, np.uint8).astype(np.int64)
            for n, counts in enumerate(self._counts):
                np.add.at(counts, _split(data, n), 1)
        self._totals = [counts.sum(1) for counts in self._counts]
        self._kinds = [(counts > 0).sum(1) for counts in self._counts]

    def bits(self, text: bytes) -> float:
        """Returns -sum log2 p over every byte except the first, given the bytes before it."""
        data = np.frombuffer(text, np.uint8).astype(np.int64)
        probability = np.full(len(data), 1 / _BYTES)
        for n, counts in enumerate(self._counts):
            context, target = _split(data, n)
            total, kinds = self._totals[n][context], self._kinds[n][context]
            lower, seen = probability[n:], counts[context, target]
            weight = np.maximum(total + kinds, 1)
            probability[n:] = np.where(total > 0, (seen + kinds * lower) / weight, lower)
        return float(-np.log2(probability[1:]).sum())

    def bits_per_byte(self, files: Iterable[bytes]) -> float:
        """Returns the mean of `bits` over the predicted bytes of all files."""
        texts = list(files)
        return sum(map(self.bits, texts)) / sum(len(text) - 1 for text in texts)


def _split(data: NDArray[np.int64], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the codes of the n bytes before each of data[n:], and data[n:]."""
    context = np.zeros(max(len(data) - n, 0), np.int64)
    for i in range(n):
        context = context * _BYTES + data[i : len(data) - n + i]
    return context, data[n:]
