# SPDX-License-Identifier: Apache-2.0
"""Retention of other projects: flash-linear-attention 0.6.0, the example of Helion, and torchscale
0.3.0.

All are optional. ``why_not`` says why a peer cannot run.
"""

import importlib
import os
import sys
from dataclasses import replace
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cases import Case, Inputs, retention_credit
from contenders import Run, timed, too_long
from timing import Clock

CHUNKS = [64, 128, 256, 512]  # chunk sizes of torchscale's chunkwise form


@cache
def load(name: str) -> ModuleType | str:
    """Returns the module, or the reason why it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        return f"not installed (no module {error.name})"
    except Exception as error:
        return f"its import failed: {type(error).__name__}: {error}"


class FlashLinearAttention:
    """A function of fla.ops.retention. Its tensors are [B, T, H, D] like ours, and gamma = 1 -
    2^(-5-h) is built in.

    It is called as the layer of fla does in training, without the final state. A step is the
    recurrent function at T = 1, from the state to a new one.
    """

    def __init__(self, function: str):
        self.function = function
        self.name = f"fla {function}"

    def why_not(self, case: Case) -> str | None:
        """Requires a GPU, because its kernels are written in Triton."""
        if case.device.type != "cuda":
            return "needs a GPU (its kernels are Triton's)"
        module = load("fla.ops.retention")
        if isinstance(module, str):
            return module
        slow = self.function in ("parallel_retention", "fused_recurrent_retention")
        return too_long(case) if slow and not case.is_step else None

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        """Returns the call of the function as a model makes it."""
        function = getattr(load("fla.ops.retention"), self.function)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return function(q, k, v)[0]

        def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            token = (x.unsqueeze(1) for x in (q, k, v))
            out, _ = function(*token, initial_state=inputs.state, output_final_state=True)
            return out.squeeze(1)

        leaves = [inputs.q, inputs.k, inputs.v]
        call = timed(case, step if case.is_step else forward, leaves, inputs.grad)
        return Run(call, retention_credit(case))


class Helion:
    """The chunked retention in the examples of Helion: examples/linear of pytorch/helion, on the
    path as the package helion_linear (tools/gpu_wheels.sh). Helion itself has no retention.

    Its tensors are [B, H, T, K], and its decay is [B, H, T] of the same dtype. It uses the
    configurations that come with the example, which its authors tuned, or Helion's default. Nothing
    is tuned here.
    """

    name = "helion retention"
    engine = "helion_linear.linear_attention_engine"

    def why_not(self, case: Case) -> str | None:
        """Requires a GPU, because its kernels are written in Triton, and the example, which is not
        in the package.
        """
        if case.device.type != "cuda":
            return "needs a GPU (its kernels are Triton's)"
        os.environ.setdefault("HELION_AUTOTUNE_CACHE", "AOTAutotuneCache")
        os.environ.setdefault("HELION_AOT_MODE", "evaluate")
        for module in (load("helion"), load(self.engine)):
            if isinstance(module, str):
                return module
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        """Prepares the layout, and returns the call as the example makes it."""
        function = load(self.engine).helion_chunk_retention  # type: ignore[union-attr]
        shape = case.shape
        decay = inputs.log_decay.to(case.dtype).view(1, -1, 1)
        decay = decay.expand(shape.B, shape.H, shape.T).contiguous()

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = function(q, k, v, decay, C=64, scale=shape.K**-0.5)
            return out.transpose(1, 2)

        heads_first = [x.transpose(1, 2).contiguous() for x in (inputs.q, inputs.k, inputs.v)]
        call = timed(case, forward, heads_first, inputs.grad)

        def as_ours() -> tuple[Tensor, ...]:
            out, *gradients = call()
            return (out, *(x.transpose(1, 2) for x in gradients))

        return Run(as_ours, retention_credit(case))


@cache
def torchscale() -> tuple[Any, Any] | str:
    """Returns its classes MultiScaleRetention and RetNetRelPos, or the reason why they cannot be
    imported.

    torchscale imports two packages that these classes never use (fairscale exists only as source,
    and timm has moved the module). They are stubs during the import.
    """
    stubs = {name: ModuleType(name) for name in STUBS}
    for name, functions in STUBS.items():
        for function in functions:
            setattr(stubs[name], function, None)
    absent = [name for name in stubs if name not in sys.modules]
    sys.modules.update({name: stubs[name] for name in absent})
    try:
        architecture = load("torchscale.architecture.retnet")
    finally:
        for name in absent:
            del sys.modules[name]
    if isinstance(architecture, str):
        return architecture
    return architecture.MultiScaleRetention, architecture.RetNetRelPos


STUBS: dict[str, list[str]] = {
    "fairscale": [],
    "fairscale.nn": ["checkpoint_wrapper", "wrap"],
    "timm": [],
    "timm.models": [],
    "timm.models.layers": ["drop_path"],
}


class Torchscale:
    """A form of torchscale's MultiScaleRetention: its method on given q, k and v, without the rest.

    Its tensors are [B, H, T, K] with K^-0.5 on k, as its layer has them after the rotation. It
    scales each row by a positive factor. Masks are made before, in float32, and then rounded.
    """

    def __init__(self, form: str):
        self.form = form
        self.name = f"torchscale {form}"

    def why_not(self, case: Case) -> str | None:
        """Names what is missing, a length that is too long, or a backward through the recurrence
        that needs too much memory.
        """
        module = torchscale()
        if isinstance(module, str):
            return module
        shape = case.shape
        if self.form == "recurrent" and case.backward:
            kept = 3 * 4 * shape.T * shape.B * shape.H * shape.K * shape.V / 2**30
            if kept > 1:
                return f"its backward keeps a state per token: {kept:.0f} GiB"
        return None if self.form == "chunkwise" or case.is_step else too_long(case)

    def prepare(self, case: Case, inputs: Inputs) -> Run:
        """Prepares the masks, the layout and the method. The chunkwise form uses the chunk size
        that is fastest here (its default is 512).
        """
        if self.form != "chunkwise":
            return self._prepare(case, inputs, case.shape.T)
        chunks = [n for n in CHUNKS if case.shape.T % n == 0] or [case.shape.T]
        runs = {n: self._prepare(case, inputs, n) for n in chunks}
        clock = Clock(case.device)
        best = min(runs, key=lambda n: min(clock(runs[n].call) for _ in range(2)))
        return replace(runs[best], note=f"chunks of {best}")

    def _prepare(self, case: Case, inputs: Inputs, chunk: int) -> Run:
        module = torchscale()
        assert not isinstance(module, str)
        retention, position = module
        shape = case.shape
        # The methods read these three sizes of their module and nothing else.
        layer = SimpleNamespace(num_heads=shape.H, head_dim=shape.V, key_dim=shape.K)
        masks = position(
            SimpleNamespace(
                decoder_embed_dim=shape.d_model,
                decoder_retention_heads=shape.H,
                recurrent_chunk_size=chunk,
            )
        ).to(case.device)
        scale = shape.K**-0.5

        if case.is_step:
            assert inputs.state is not None
            # Its state is the transposed sum of k^T v, divided by the root of the sum of the
            # decays.
            decay = inputs.log_decay.exp()
            total = (1 - decay**shape.T) / (1 - decay)
            kept = {
                "prev_key_value": (
                    inputs.state.mT.contiguous() * (scale * total.rsqrt()).view(-1, 1, 1)
                ).to(case.dtype),
                "scale": total.to(case.dtype),
            }
            decay = decay.to(case.dtype)

            def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return retention.recurrent_forward(layer, q, k, v, decay, dict(kept))

            token = [inputs.q.unsqueeze(2), inputs.k.unsqueeze(2) * scale, inputs.v]
            return Run(timed(case, step, token, inputs.grad), retention_credit(case), "rows")

        if self.form == "chunkwise":
            mask = tuple(x.to(case.dtype) for x in masks(shape.T, chunkwise_recurrent=True)[1])
        elif self.form == "parallel":
            mask = masks(shape.T)[1].to(case.dtype)
        else:
            mask = masks(shape.T, activate_recurrent=True)[1].to(case.dtype)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            v = v.flatten(2)
            if self.form == "chunkwise":
                out = retention.chunk_recurrent_forward(layer, q, k, v, mask)
                return out.reshape(*v.shape[:2], shape.H, shape.V)
            if self.form == "parallel":
                return retention.parallel_forward(layer, q, k, v, mask)
            state: dict[str, Tensor] = {}
            rows = [
                retention.recurrent_forward(
                    layer, q[:, :, t : t + 1], k[:, :, t : t + 1], v[:, t], mask, state
                )
                for t in range(shape.T)
            ]
            return torch.stack(rows, 1)

        heads_first = [x.transpose(1, 2).contiguous() for x in (inputs.q, inputs.k * scale)]
        call = timed(case, forward, [*heads_first, inputs.v], inputs.grad)
        return Run(call, retention_credit(case), "rows")
