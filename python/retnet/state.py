# SPDX-License-Identifier: Apache-2.0
"""The decoding state of a RetNet: a value of fixed size, whatever the length of the text."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["RetNetState"]


class RetNetState(NamedTuple):
    """What a RetNet remembers of the tokens it has read (paper 2.1, Eq. 6: S_n of every layer).

    A named tuple, so that torch.compile, FSDP and torch.export see the tensors inside.

    Attributes:
        retention: [L, B, H, K, V] float32 (float64 in a float64 model), S_n of each layer.
        positions: [B] int64, tokens read so far; the position of the next token.
    """

    retention: Tensor
    positions: Tensor

    def fork(self) -> RetNetState:
        """Returns an independent copy: continuing one leaves the other as it is."""
        return RetNetState(self.retention.clone(), self.positions.clone())

    def select(self, rows: Tensor) -> RetNetState:
        """Returns a copy with the given batch rows, in that order; rows may repeat (beam search).

        Args:
            rows: [R] int64 or int32, indices into the batch.
        """
        return RetNetState(
            self.retention.index_select(1, rows), self.positions.index_select(0, rows)
        )

    def detach(self) -> RetNetState:
        """Returns the same values cut off from the graph (truncated back-propagation)."""
        return RetNetState(self.retention.detach(), self.positions)
