# SPDX-License-Identifier: Apache-2.0
"""Measures how well a model predicts documents, with a defined context for every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from retnet.nn import RetNetForCausalLM
from retnet.nn.loss import IGNORE_INDEX
from retnet.state import RetNetState
from retnet.training.data import Batch

__all__ = ["Score", "describe_context", "evaluate"]

_ROWS = 8
_TOKENS = 8192


class Score(NamedTuple):
    """The sum of -ln p over `tokens` predicted tokens, in nats."""

    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens


@torch.no_grad()
def evaluate(
    model: RetNetForCausalLM,
    documents: Sequence[Tensor],
    window: int | None = None,
    progress: str | None = None,
) -> Score:
    """Scores every token except the first of each document.

    Args:
        model: the model, of any dtype and under any autocast.
        documents: [N_i] integer tensors. Documents of fewer than two tokens have nothing to
            predict.
        window: if None, the state is carried, so that the whole document before a token is its
            context. Otherwise the model reads windows of this many tokens, at least 2. Each window
            starts half a window after the one before, and the model scores the tokens that no
            earlier window scored.
        progress: title of a progress bar. The bar is shown on a terminal only.

    Raises:
        ValueError: there is nothing to predict, or window < 2.
    """
    if window is not None and window < 2:
        raise ValueError(f"evaluate: window must be >= 2, got {window}")
    device = model.embed_tokens.weight.device
    batches = _windows(documents, window) if window else _carried(documents)
    total = sum(max(len(ids) - 1, 0) for ids in documents)
    if total == 0:
        raise ValueError("evaluate: documents must hold a token to predict, got none")
    nats, tokens = 0.0, 0
    state: RetNetState | None = None
    hidden = None if progress else True  # None: tqdm hides it if stderr is no terminal
    with tqdm(total=total, desc=progress, unit=" tokens", leave=False, disable=hidden) as bar:
        for inputs, targets, fresh in batches:
            if fresh is None or fresh.all():
                state = None
            elif state is not None and len(inputs) < len(state.positions):
                ended = len(state.positions) - len(inputs)
                running = torch.arange(ended, len(state.positions), device=device)
                state = state.select(running)
            _, loss, state = model(
                inputs.to(device), state=state, targets=targets.to(device), reduction="sum"
            )
            nats += loss.item()
            count = int((targets != IGNORE_INDEX).sum())
            tokens += count
            bar.update(count)
    return Score(nats, tokens)


def describe_context(window: int | None) -> str:
    """Describes the context of a token that `evaluate` scores."""
    if window is None:
        return "all of the document before each token (the state is carried)"
    return (
        f"windows of {window} tokens; before each token stand {window // 2 + 1} to {window} "
        "tokens, or all there are at the start of a document"
    )


def _carried(documents: Sequence[Tensor]) -> Iterator[Batch]:
    """Yields segments of documents of similar length, side by side.

    All batch entries are fresh in the first segment. The shorter documents come first, and
    documents that have ended are left out.
    """
    ordered = sorted((ids for ids in documents if len(ids) > 1), key=len)
    for first in range(0, len(ordered), _ROWS):
        running, start = ordered[first : first + _ROWS], 0
        while running:
            segment_length = _TOKENS // len(running)
            parts = [ids[start : start + segment_length + 1].long() for ids in running]
            fresh = torch.full((len(running),), start == 0)
            yield _pad(parts, [0] * len(running))._replace(fresh=fresh)
            start += segment_length
            running = [ids for ids in running if len(ids) - 1 > start]


def _windows(documents: Sequence[Tensor], window: int) -> Iterator[Batch]:
    parts: list[Tensor] = []
    skipped: list[int] = []
    for ids in documents:
        # A window of T inputs predicts T tokens. In every window except the first of a document,
        # the window before it has scored the first half of them.
        for start in range(0, max(len(ids) - 1, 0), window - window // 2):
            skip = 0 if start == 0 else window // 2
            if len(ids) - 1 - start <= skip:
                break
            parts.append(ids[start : start + window + 1].long())
            skipped.append(skip)
            if len(parts) == max(_TOKENS // window, 1):
                yield _pad(parts, skipped)
                parts, skipped = [], []
    if parts:
        yield _pad(parts, skipped)


def _pad(parts: list[Tensor], skipped: list[int]) -> Batch:
    """Returns rows of tokens as a batch, without the first `skipped` targets of each row."""
    length = max(map(len, parts)) - 1
    inputs = torch.zeros(len(parts), length, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORE_INDEX)
    for row, (ids, skip) in enumerate(zip(parts, skipped, strict=True)):
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, skip : len(ids) - 1] = ids[1 + skip :]
    return Batch(inputs, targets)
