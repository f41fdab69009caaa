# SPDX-License-Identifier: Apache-2.0
from typing import Any

import torch
from torch import Tensor

__version__: str
linear_few_rows: int

def has_faster_linear(x: Tensor, weight: Tensor) -> bool: ...

class _Module:
    def __init__(
        self, config: dict[str, Any], device: torch.device, dtype: torch.dtype
    ) -> None: ...
    def named_parameters(self) -> list[tuple[str, Tensor]]: ...
    def reset_parameters(self) -> None: ...
    def train(self, on: bool) -> None: ...

class LayerNorm(_Module):
    def forward(self, x: Tensor) -> Tensor: ...

class FeedForward(_Module):
    def forward(self, x: Tensor) -> Tensor: ...

class MultiScaleRetention(_Module):
    def forward(
        self,
        x: Tensor,
        state: Tensor | None,
        positions: Tensor | None,
        cu_seqlens: Tensor | None,
        form: str,
        inplace: bool,
    ) -> tuple[Tensor, Tensor]: ...

class DecoderLayer(_Module):
    def forward(
        self,
        x: Tensor,
        state: Tensor | None,
        positions: Tensor | None,
        cu_seqlens: Tensor | None,
        form: str,
        inplace: bool,
    ) -> tuple[Tensor, Tensor]: ...

class RetNet(_Module):
    checkpoint_layers: bool
    def forward(
        self,
        input_ids: Tensor,
        state: tuple[Tensor, Tensor] | None,
        cu_seqlens: Tensor | None,
        form: str,
        inplace: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

class RetNetForCausalLM(_Module):
    checkpoint_layers: bool
    def forward(
        self,
        input_ids: Tensor,
        state: tuple[Tensor, Tensor] | None,
        cu_seqlens: Tensor | None,
        labels: Tensor | None,
        form: str,
        inplace: bool,
        last_only: bool,
        targets: Tensor | None,
        reduction: str,
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, Tensor]]: ...
    def generate(
        self,
        prompts: list[Tensor],
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        stop_tokens: list[int],
        seed: int | None,
    ) -> list[Tensor]: ...
