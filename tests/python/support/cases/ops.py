# SPDX-License-Identifier: Apache-2.0
"""Inputs of the tests of rotary, gated_group_norm, linear, retention_step,
multi_scale_retention_step."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from support.cases.retention import LOG_DECAYS, state_dtype

Inputs = dict[str, Tensor]
STYLES = ["interleaved", "half"]
NORMS = ["layer", "rms"]
INT32 = torch.int32
BF16 = torch.bfloat16
# ATen computes in the first, and the kernel of the device in the second.
EXACT_AND_KERNEL = [torch.float64, torch.float32]


class Normal:
    """Makes random float64 tensors from a local seed, rounded to a dtype."""

    def __init__(self, seed: int, device: torch.device | str) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device

    def __call__(self, *shape: int, dtype: torch.dtype) -> Tensor:
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return values.to(dtype).to(self.device)


def normal(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> Tensor:
    """Returns one random tensor on the CPU."""
    return Normal(seed, "cpu")(*shape, dtype=dtype)


def make_frequencies(Dk: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns 10000^(-i / (Dk/2)), the usual geometric sequence from 1 down."""
    return (10000.0 ** -(torch.arange(Dk // 2, dtype=torch.float64) / (Dk // 2))).float().to(device)


def rotary_inputs(
    B: int = 2,
    T: int | None = 5,
    H: int = 3,
    Dk: int = 8,
    *,
    batch_positions: bool = False,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Inputs:
    """Returns q, k, positions and frequencies. If T is None, each batch entry has one token,
    [B, H, Dk].
    """
    normal = Normal(seed, device)
    shape = (B, H, Dk) if T is None else (B, T, H, Dk)
    positions = {
        None: lambda: torch.arange(B) * 37 + 5,
        True: lambda: torch.arange(B * (T or 0)).view(B, T or 0) * 3 - 4,
        False: lambda: torch.arange(T or 0) + 11,
    }[None if T is None else batch_positions]()
    return {
        "q": normal(*shape, dtype=dtype),
        "k": normal(*shape, dtype=dtype),
        "positions": positions.to(device),
        "frequencies": make_frequencies(Dk, device),
    }


def norm_inputs(
    leading: Iterable[int] = (2, 5),
    H: int = 3,
    Dv: int = 12,
    *,
    gate: bool = True,
    weight: str = "[H, Dv]",
    bias: str = "[Dv]",
    dtype: torch.dtype = torch.float64,
    affine_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Inputs:
    """Returns x and those of gate, weight and bias that are given. weight and bias are "[H, Dv]",
    "[Dv]" or "".
    """
    normal = Normal(seed, device)
    shape = (*leading, H, Dv)
    affine = {"[H, Dv]": (H, Dv), "[Dv]": (Dv,)}
    inputs = {"x": normal(*shape, dtype=dtype) * 2 + 0.5}
    if gate:
        inputs["gate"] = normal(*shape, dtype=dtype)
    for name, layout in (("weight", weight), ("bias", bias)):
        if layout:
            inputs[name] = normal(*affine[layout], dtype=affine_dtype or state_dtype(dtype))
    return inputs


def linear_inputs(
    B: int = 3,
    n_in: int = 8,
    n_out: int = 12,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Inputs:
    """Returns x, weight and bias of linear."""
    normal = Normal(seed, device)
    shapes = {"x": (B, n_in), "weight": (n_out, n_in), "bias": (n_out,)}
    return {name: normal(*shape, dtype=dtype) for name, shape in shapes.items()}


def by_onednn(out: Tensor) -> bool:
    """Returns whether oneDNN computed this result of linear. It must require a gradient."""
    return type(out.grad_fn).__name__ == "CppFunction"


def step_inputs(
    B: int = 3,
    H: int = 4,
    Dk: int = 8,
    Dv: int = 12,
    *,
    S: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    log_decay: list[float] | None = None,
    seed: int = 0,
) -> Inputs:
    """Returns q, k, v, log_decay and state. With S slots it also returns slots, which skip every
    second batch entry.
    """
    normal = Normal(seed, device)
    decays = (LOG_DECAYS * (H // len(LOG_DECAYS) + 1))[:H] if log_decay is None else log_decay
    inputs = {
        "q": normal(B, H, Dk, dtype=dtype),
        "k": normal(B, H, Dk, dtype=dtype),
        "v": normal(B, H, Dv, dtype=dtype),
        "log_decay": torch.tensor(decays, dtype=state_dtype(dtype), device=device),
        "state": normal(B if S is None else S, H, Dk, Dv, dtype=state_dtype(dtype)),
    }
    if S is not None:
        slots = [S - 1 - b if b % 2 == 0 else -1 - b for b in range(B)]
        inputs["slots"] = torch.tensor(slots, dtype=INT32, device=device)
    return inputs


def fused_inputs(
    B: int = 3,
    H: int = 4,
    Dk: int = 8,
    Dv: int = 12,
    *,
    S: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Inputs:
    """Returns all inputs of multi_scale_retention_step by name."""
    normal = Normal(seed + 1, device)
    step = step_inputs(B, H, Dk, Dv, S=S, dtype=dtype, device=device, seed=seed)
    return {
        **{name: step[name] for name in ("q", "k", "v")},
        "gate": normal(B, H, Dv, dtype=dtype),
        "log_decay": step["log_decay"],
        "state": step["state"],
        "positions": torch.arange(B, device=device) * 37 + 5,
        "frequencies": make_frequencies(Dk, device),
        "weight": normal(H, Dv, dtype=state_dtype(dtype)),
        "bias": normal(Dv, dtype=state_dtype(dtype)),
        **({"slots": step["slots"]} if S is not None else {}),
    }


def ask(inputs: Inputs, *names: str) -> Inputs:
    """Returns detached copies. Those that are named require gradients. If none are named, all
    floating-point inputs except frequencies do.
    """
    names = names or tuple(n for n, x in inputs.items() if x.is_floating_point())
    copies = {name: x.detach().clone() for name, x in inputs.items()}
    for name in names:
        if name != "frequencies":
            copies[name].requires_grad_()
    return copies


def asking(inputs: Inputs) -> Inputs:
    """Returns the inputs that require gradients."""
    return {name: x for name, x in inputs.items() if x.requires_grad}


def exact(inputs: Inputs) -> Inputs:
    """Returns the same rounded values in float64 on the CPU, as inputs of an oracle. The same
    inputs require gradients.
    """
    return {
        name: (x.detach().double() if x.is_floating_point() else x)
        .cpu()
        .requires_grad_(x.requires_grad)
        for name, x in inputs.items()
    }


def assert_rounded_once(actual: Tensor, reference: Tensor) -> None:
    """Asserts that a half-precision result is the rounded float64 reference, except a few elements
    that float32 arithmetic moves across a rounding boundary. A second rounding would move a third
    of them.
    """
    if actual.dtype in (torch.bfloat16, torch.float16):
        misses = int((actual.detach().cpu() != reference.detach().to(actual.dtype)).sum())
        count = actual.numel()
        assert misses <= max(1, 0.03 * count), f"{misses} of {count} are not the rounded reference"


def strided(x: Tensor) -> Tensor:
    """Returns the same values at an odd offset, with gaps of NaN between the elements of every
    dimension except the last, or between the elements of a vector.
    """
    steps = [2] * (x.dim() - 1) + [1 if x.dim() > 1 else 2]
    shape = [n * step for n, step in zip(x.shape, steps, strict=True)]
    shape[-1] += 3
    fill = math.nan if x.is_floating_point() else -1
    wide = torch.full(shape, fill, dtype=x.dtype, device=x.device)
    view = wide[..., 3:][tuple(slice(None, None, step) for step in steps)]
    view.copy_(x)
    assert view.storage_offset() % 2 == 1
    return view
