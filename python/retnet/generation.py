# SPDX-License-Identifier: Apache-2.0
"""Text generation.

The model reads the prompts in one chunkwise pass. It then takes one recurrent step per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from retnet._decode_step import DecodeStep
from retnet.nn import RetNetForCausalLM

__all__ = ["generate", "stream"]

_UNCHECKED_STEPS = 64  # upper bound of the steps whose logits are not known to be finite


def generate(
    model: RetNetForCausalLM,
    prompts: Tensor | Sequence[Tensor],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
) -> list[Tensor]:
    """Continues each prompt.

    On CUDA, the third decode step is recorded as a CUDA graph of the whole model. Later steps
    replay it. In these cases the steps run one by one instead, with the same text:

    - a module is from neither torch.nn nor retnet (LoRA, for example),
    - a module has hooks or a replaced forward method,
    - the parameters are on several devices or are of a tensor subclass,
    - autocast is on,
    - recording fails.

    The logger ``retnet._decode_step`` then says why, once.

    Args:
        model: a RetNetForCausalLM.
        prompts: N prompts, [N, T] or N tensors [T_n], int64 or int32 on the model's device. Each
            has at least one token. If the lengths differ, the model reads the prompts packed.
        max_new_tokens: the maximum number of new tokens for each prompt, >= 0.
        temperature: divides the logits, >= 0. 0 takes the most likely token.
        top_k: sample only from the k most likely tokens, k >= 1. Ties with the k-th are kept.
        top_p: sample only from the smallest set of most likely tokens whose probabilities (after
            temperature and top_k) sum to at least p, 0 < p <= 1 (nucleus sampling, Holtzman et al.
            2020).
        stop_tokens: a text ends with the first of these tokens that is sampled. This token is part
            of the text.
        seed: makes the sampling repeatable. None samples from torch's global generator.

    Returns:
        Each prompt with its continuation, as N int64 tensors.

    Raises:
        ValueError: an argument is out of range. The message names the argument and its value. Or a
            logit is NaN or inf. A logit of -inf bans its token and is legal, unless all logits of a
            row are -inf.

    Example:
        >>> import torch
        >>> from retnet import RetNetConfig
        >>> from retnet.generation import generate
        >>> from retnet.nn import RetNetForCausalLM
        >>> model = RetNetForCausalLM(RetNetConfig.preset("tiny"))
        >>> prompts = [torch.tensor(list(text)) for text in (b"def f(", b"import")]
        >>> texts = generate(model, prompts, max_new_tokens=10, top_k=20, seed=0)
        >>> [len(text) for text in texts]
        [16, 16]
    """
    written = list(
        stream(
            model,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop_tokens=stop_tokens,
            seed=seed,
        )
    )
    texts = []
    for n, prompt in enumerate(prompts):
        text = torch.cat([prompt.long(), *(tokens[n] for tokens in written)])
        stops = torch.isin(text[len(prompt) :], _tensor(stop_tokens, text.device)).nonzero()
        texts.append(text[: len(prompt) + int(stops[0]) + 1] if len(stops) else text)
    return texts


@torch.no_grad()
def stream(
    model: RetNetForCausalLM,
    prompts: Tensor | Sequence[Tensor],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
) -> Iterator[Tensor]:
    """Yields one token of each text, [N, 1] int64, as soon as the tokens are sampled.

    The arguments and errors are those of `generate`. The stream ends when every text has a stop
    token. Ignore the tokens that a text gets after its own stop token.

    On the CPU, and if there are stop tokens, the logits of every step are checked before its token
    is sampled. Otherwise each check would wait for the device. The logits of the first step and of
    every 64th step are then checked immediately, and the rest when the text ends. Up to 64 tokens
    that were sampled from NaN may precede the error. Nothing else waits for the device, except stop
    tokens and, once, the recording of a CUDA graph.

    Example:
        >>> import torch
        >>> from retnet import RetNetConfig
        >>> from retnet.generation import stream
        >>> from retnet.nn import RetNetForCausalLM
        >>> model = RetNetForCausalLM(RetNetConfig.preset("tiny"))
        >>> prompt = torch.tensor(list(b"def f("))
        >>> text = bytes(token.item() for token in stream(model, [prompt], max_new_tokens=10))
        >>> len(text)
        10
    """
    if len(prompts) == 0:
        raise ValueError("generate: prompts must hold at least one prompt, got none")
    for prompt in prompts:
        if prompt.dim() != 1 or prompt.shape[0] == 0:
            raise ValueError(
                f"generate: prompts must have shape [T], T >= 1, got {list(prompt.shape)}"
            )
        if prompt.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"generate: prompts must be int64 or int32, got {prompt.dtype}")
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must be >= 0, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"generate: temperature must be >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k must be >= 1 or None, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p must be in (0, 1] or None, got {top_p}")
    if seed is not None and not 0 <= seed < 2**64:
        raise ValueError(f"generate: seed must be in 0..2^64-1 or None, got {seed}")
    device = prompts[0].device
    generator = None
    if seed is not None:
        generator = torch.Generator(device=device).manual_seed(seed)
    stops = _tensor(stop_tokens, device)
    ended = torch.zeros(len(prompts), 1, dtype=torch.bool, device=device)

    waits = _is_synchronous(device) or len(stop_tokens) > 0
    largest: list[Tensor] = []  # since the last check

    ids, bounds = _block(prompts)
    step: DecodeStep | None = None
    for count in range(max_new_tokens):
        if step is None:
            logits, _, state = model(ids, cu_seqlens=bounds, last_only=True)
            step = DecodeStep(model, state)
        else:
            logits = step(ids)
        logits = logits.view(len(prompts), -1)
        peak = logits.amax(-1, keepdim=True)
        largest.append(peak)
        if waits or count % _UNCHECKED_STEPS == 0:
            _check_finite(largest)
            largest = []
        ids = _draw(logits, peak, temperature, top_k, top_p, generator)
        yield ids
        if len(stop_tokens):
            ended |= torch.isin(ids, stops)
            if ended.all():
                return
    _check_finite(largest)


def _is_synchronous(device: torch.device) -> bool:
    """Returns whether reading a value waits for nothing."""
    return device.type == "cpu"


def _check_finite(largest: list[Tensor]) -> None:
    """Raises ValueError if a row holds NaN or inf, or only -inf.

    Args:
        largest: the largest logit of each row, [N, 1] for each step.
    """
    if not largest:
        return
    values = torch.cat(largest).flatten()
    bad = values.isfinite().logical_not().nonzero()
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"generate: logits must be finite, got {values[first].item()} for prompt "
            f"{first % len(largest[0])}; the weights may hold NaN or inf"
        )


def _block(prompts: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Returns the prompts as rows [N, T], or packed [1, sum T] with bounds if lengths differ."""
    if isinstance(prompts, Tensor):
        return prompts, None
    lengths = [prompt.shape[0] for prompt in prompts]
    if len(set(lengths)) == 1:
        return torch.stack(list(prompts)), None
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return torch.cat(list(prompts)).unsqueeze(0), bounds.to(prompts[0].device)


def _tensor(tokens: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=device)


def _draw(
    logits: Tensor,
    largest: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Samples one token per row, [N, 1], from logits [N, vocab] and the largest of each row."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float()
    # Subtract first: a temperature near 0 must neither make two infinities nor round to 0.
    least_temperature = torch.finfo(torch.float32).tiny
    differences = logits - largest.float()
    # Unchecked NaN must not reach multinomial: on CUDA it aborts before the error can be raised.
    logits = differences.where(largest.isfinite(), 0) / max(temperature, least_temperature)
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None:
        ordered, order = probabilities.sort(-1, descending=True)
        likelier = ordered.cumsum(-1) - ordered  # the sum of those before each
        ordered = ordered.masked_fill(likelier >= top_p, 0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)
