# SPDX-License-Identifier: Apache-2.0
"""What is measured: shapes and dtypes by device, their inputs, and the work that they are credited
with.

A token-head is one head at one token. Work is credited by formula, whatever a contender executes,
so that TFLOP/s compare as times do. A sequence is credited with the chunkwise form at C = 64, and
its backward pass with three more retentions. A step is credited with the decay, update and readout
of one state. A share of the peak of a CPU relates to least_flop, which counts only the causal half
of a chunk.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Work = Literal["forward", "forward+backward", "step", "step in a CUDA graph"]
CHUNK = 64
ATTENTION_HEAD = 128
HEADS = [(256, 512), (256, 256), (128, 256), (128, 128)]  # K, V; those of the paper come first
CPU_HEADS = [(4, 256, 432), (8, 128, 256), (8, 128, 128), (16, 64, 64)]  # H, K, V
CHECKED = 1 << 18  # token-heads whose outputs are compared


def dtype_name(dtype: torch.dtype) -> str:
    """Returns float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Shape:
    """Batch, time (for a step: tokens before it), heads, and the head sizes of keys and values."""

    B: int
    T: int
    H: int
    K: int
    V: int

    @property
    def d_model(self) -> int:
        """Returns the width of the model. K is an H-th of it."""
        return self.H * self.K

    @property
    def attention_heads(self) -> int:
        """Returns the number of attention heads at the same width."""
        return max(1, self.d_model // ATTENTION_HEAD)

    def __str__(self) -> str:
        return " ".join(f"{name}={size}" for name, size in asdict(self).items())


@dataclass(frozen=True)
class Case:
    """One measurement in which all contenders take part."""

    work: Work
    shape: Shape
    dtype: torch.dtype
    device: torch.device
    peers: bool = (
        True  # if False, only the fastest form of retnet runs, to measure it at other shapes
    )

    @property
    def token_heads(self) -> int:
        """Returns the number of token-heads that one call processes."""
        shape = self.shape
        return shape.B * shape.H * (1 if self.is_step else shape.T)

    @property
    def is_step(self) -> bool:
        """Returns whether one token is decoded rather than a sequence processed."""
        return self.work.startswith("step")

    @property
    def backward(self) -> bool:
        """Returns whether gradients are part of the work."""
        return self.work == "forward+backward"

    def __str__(self) -> str:
        return f"{self.work}  {self.shape}  {dtype_name(self.dtype)}"


@dataclass(frozen=True)
class Credit:
    """The work that one call is credited with."""

    flop: float
    bytes: float
    formula: str


def retention_credit(case: Case) -> Credit:
    """Returns the credit of retention. The arithmetic is as the docstring of the module says, and
    each input and output is moved once.
    """
    K, V, size = case.shape.K, case.shape.V, case.dtype.itemsize
    if case.is_step:
        flop, traffic = 4 * K * V, 2 * 4 * K * V + size * (2 * K + 2 * V)
        formula = "4KV"
    else:
        flop, traffic = 4 * K * V + 2 * CHUNK * (K + V), size * (2 * K + 2 * V)
        formula = "4KV + 2C(K+V), C=64"
        if case.backward:  # reads q, k, v and the gradient of out, and writes three gradients
            flop, traffic = 4 * flop, traffic + size * (4 * K + 3 * V)
            formula = f"4 ({formula})"
    return Credit(flop * case.token_heads, traffic * case.token_heads, formula)


def least_flop(case: Case) -> float:
    """Returns the work that the chunkwise form cannot avoid at C = 64: forward 4KV + C(K+V) per
    token-head, and 10KV + C(3K+2V) more for grad_q, grad_k and grad_v.
    """
    K, V = case.shape.K, case.shape.V
    flop = 4 * K * V + CHUNK * (K + V)
    if case.backward:
        flop += 10 * K * V + CHUNK * (3 * K + 2 * V)
    return flop * case.token_heads


def attention_credit(case: Case) -> Credit:
    """Returns the credit of causal attention over d_model: the causal half of the two products, and
    2.5 times that for the backward pass.
    """
    shape, size = case.shape, case.dtype.itemsize
    width = shape.B * shape.attention_heads * ATTENTION_HEAD
    if case.is_step:
        return Credit(4 * shape.T * width, 2 * size * shape.T * width, "4 T d_model")
    flop, traffic = 2 * shape.T**2 * width, 4 * size * shape.T * width
    if case.backward:
        return Credit(3.5 * flop, traffic + 8 * size * shape.T * width, "7 T^2 d_model")
    return Credit(flop, traffic, "2 T^2 d_model")


@dataclass(frozen=True)
class Inputs:
    """Random inputs of a case, the same for all contenders.

    q, k [B, T, H, K], v and grad [B, T, H, V] (a step: without T); state [B, H, K, V] for a step;
    log_decay [H] = ln(1 - 2^(-5-h)), the only decay that flash-linear-attention knows.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    log_decay: Tensor
    state: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        """Returns a copy with ``function`` applied to each tensor."""
        return Inputs(*(None if x is None else function(x) for x in vars(self).values()))  # type: ignore[arg-type]


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Returns normally distributed values, rounded to the dtype of the case."""
    shape, device = case.shape, case.device
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=device, dtype=dtype)

    lead = (shape.B, shape.H) if case.is_step else (shape.B, shape.T, shape.H)
    heads = torch.arange(shape.H, dtype=torch.float32, device=device)
    return Inputs(
        q=normal(*lead, shape.K),
        k=normal(*lead, shape.K),
        v=normal(*lead, shape.V),
        grad=normal(*lead, shape.V),
        log_decay=torch.log1p(-torch.exp2(-5 - heads)),
        state=normal(shape.B, shape.H, shape.K, shape.V, dtype=torch.float32)
        if case.is_step
        else None,
    )


def cases(device: torch.device, dtypes: list[torch.dtype], quick: bool) -> list[Case]:
    """Returns what is measured on a device, the most informative case first."""
    paper = HEADS[0]
    if quick:
        sequences, steps = [Shape(1, 64, 2, 16, 32)], [Shape(2, 64, 2, 16, 32)]
    elif device.type == "cuda":
        sequences = [Shape(4, T, 8, K, V) for T in (8192, 2048) for K, V in HEADS]
        sequences += [Shape(1, T, 8, *paper) for T in (32768, 131072)]
        sequences += [Shape(B, 8192, H, *paper) for B, H in ((1, 4), (16, 8))]
        steps = [Shape(4, 8192, 8, K, V) for K, V in HEADS]
        steps += [Shape(B, 8192, H, *paper) for B, H in ((1, 4), (16, 8))]
    else:
        sequences = [Shape(1, T, 4, *paper) for T in (8192, 2048)] + [Shape(1, 2048, 4, *HEADS[-1])]
        steps = [Shape(1, 2048, 4, *paper), Shape(8, 2048, 16, *paper)]
    sequence_works: list[Work] = ["forward", "forward+backward"]
    step_works: list[Work] = ["step"]
    if device.type == "cuda":
        step_works.append("step in a CUDA graph")
    plan = [(work, sequences[0]) for work in sequence_works]
    plan += [(work, shape) for work in step_works for shape in steps]
    plan += [(work, shape) for shape in sequences[1:] for work in sequence_works]
    every = [Case(work, shape, dtype, device) for work, shape in plan for dtype in dtypes]
    if device.type == "cpu" and not quick:
        every += [
            Case(work, Shape(1, 8192, *head), dtype, device, peers=False)
            for work in sequence_works
            for head in CPU_HEADS
            for dtype in dtypes
        ]
        every += [
            Case("forward", Shape(1, T, H, *paper), dtype, device, peers=False)
            for dtype in dtypes
            # T = 8192 with 4 heads runs again, next to the longer one that is compared with it.
            for T, H in ((8192, 1), (8192, 2), (8192, 4), (1 << 17, 4))
        ]
    return every


def checked(case: Case) -> Case:
    """Returns the case whose outputs are compared with float64: this one or, if it is large, a
    smaller one.
    """
    if case.is_step or case.token_heads <= CHECKED:
        return case
    T = min(case.shape.T, CHECKED // case.shape.H)
    return replace(case, shape=replace(case.shape, B=1, T=T))


def describe(case: Case) -> dict[str, Any]:
    """Returns the fields of a case for JSON."""
    return {"work": case.work, "shape": asdict(case.shape), "dtype": dtype_name(case.dtype)}
