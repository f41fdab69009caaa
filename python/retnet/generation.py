# SPDX-License-Identifier: Apache-2.0
"""Writing text: read the prompt in one chunkwise pass, then one recurrent step a token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from retnet.nn import RetNetForCausalLM

__all__ = ["generate", "stream"]


def generate(
    model: RetNetForCausalLM,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """Continues each prompt by `max_new_tokens` tokens.

    Args:
        model: a RetNetForCausalLM.
        input_ids: [B, T] int64, T >= 1.
        max_new_tokens: number of tokens to write, >= 0.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among the k most likely tokens only; ties with the k-th stay in.
        seed: of the draw, for repeatable text; None draws from torch's global generator.

    Returns:
        Prompt and continuation, [B, T + max_new_tokens] int64.

    Raises:
        ValueError: an argument out of range; the message names it and its value.

    Example:
        >>> import torch
        >>> from retnet import RetNetConfig
        >>> from retnet.generation import generate
        >>> from retnet.nn import RetNetForCausalLM
        >>> model = RetNetForCausalLM(RetNetConfig.preset("tiny"))
        >>> prompt = torch.tensor([list(b"def f(")])
        >>> generate(model, prompt, max_new_tokens=10, top_k=20, seed=0).shape
        torch.Size([1, 16])
    """
    written = stream(
        model,
        input_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    return torch.cat([input_ids, *written], dim=1)


@torch.no_grad()
def stream(
    model: RetNetForCausalLM,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> Iterator[Tensor]:
    """Yields each new token, [B, 1] int64, as soon as it is drawn; arguments as `generate`.

    Example:
        >>> import torch
        >>> from retnet import RetNetConfig
        >>> from retnet.generation import stream
        >>> from retnet.nn import RetNetForCausalLM
        >>> model = RetNetForCausalLM(RetNetConfig.preset("tiny"))
        >>> prompt = torch.tensor([list(b"def f(")])
        >>> text = bytes(token.item() for token in stream(model, prompt, max_new_tokens=10))
        >>> len(text)
        10
    """
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(
            f"generate: input_ids must have shape [B, T], T >= 1, got {list(input_ids.shape)}"
        )
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must be >= 0, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"generate: temperature must be >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k must be >= 1 or None, got {top_k}")
    generator = None
    if seed is not None:
        generator = torch.Generator(device=input_ids.device).manual_seed(seed)

    block, state = input_ids, None
    for _ in range(max_new_tokens):
        output = model(block, state=state, inplace=True)
        state = output.state
        block = _draw(output.logits[:, -1], temperature, top_k, generator)
        yield block


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """One token a row: [B, vocab] -> [B, 1]."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)
