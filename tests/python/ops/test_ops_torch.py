# SPDX-License-Identifier: Apache-2.0
"""rotary, gated_group_norm, linear and the steps work with PyTorch: opcheck, compile, autocast,
strides, threads. Each test runs on one table of operators.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from retnet import ops
from support.cases.ops import (
    Inputs,
    ask,
    asking,
    fused_inputs,
    linear_inputs,
    norm_inputs,
    rotary_inputs,
    step_inputs,
    strided,
)
from support.cases.retention import grads
from support.tolerances import assert_close_to_reference

parametrize = pytest.mark.parametrize


@dataclass
class Op:
    """Holds an operator, a function that makes its inputs for a batch and length, and its
    properties.
    """

    name: str
    make: Callable[..., Inputs]
    options: dict = field(default_factory=dict)
    tokens: tuple[str, ...] = ("q", "k", "v", "gate", "x")  # autocast casts these

    def __call__(self, **inputs) -> tuple[Tensor, ...]:
        """Returns the outputs and, for a step, the state after it."""
        out = getattr(ops, self.name)(**inputs, **self.options)
        state = (inputs["state"],) if "state" in inputs else ()
        return (*(out if isinstance(out, tuple) else (out,)), *state)

    @property
    def is_step(self) -> bool:
        """Returns whether the operator is a step, which has no gradients."""
        return self.name.endswith("step")

    @property
    def has_state(self) -> bool:
        return self.name.endswith("retention_step")


def with_slots(make: Callable[..., Inputs]) -> Callable[..., Inputs]:
    return lambda B=3, T=5, **kw: make(B, S=B + 4, **kw)


OPS = {
    "rotary": Op("rotary", rotary_inputs),
    "rotary_half_batch": Op(
        "rotary",
        lambda B=2, T=5, **kw: rotary_inputs(B, T, batch_positions=True, **kw),
        {"style": "half"},
    ),
    "rotary_step": Op("rotary", lambda B=2, T=5, **kw: rotary_inputs(B, None, **kw)),
    "norm_layer": Op(
        "gated_group_norm", lambda B=2, T=5, **kw: norm_inputs((B, T), **kw), {"eps": 1e-5}
    ),
    "norm_rms_plain": Op(
        "gated_group_norm",
        lambda B=2, T=5, **kw: norm_inputs((B, T), gate=False, weight="", bias="", **kw),
        {"eps": 1e-5, "norm": "rms"},
    ),
    "linear": Op(
        "linear",
        lambda B=3, T=5, **kw: linear_inputs(B, **kw),
        tokens=("x", "weight", "bias"),
    ),
    "step": Op("retention_step", lambda B=3, T=5, **kw: step_inputs(B, **kw)),
    "step_slots": Op("retention_step", with_slots(step_inputs), {"scale": 0.3}),
    "fused": Op(
        "multi_scale_retention_step", lambda B=3, T=5, **kw: fused_inputs(B, **kw), {"eps": 1e-5}
    ),
    "fused_slots": Op(
        "multi_scale_retention_step",
        with_slots(fused_inputs),
        {"eps": 1e-5, "norm": "rms", "style": "half"},
    ),
}
every_op = parametrize("op", OPS.values(), ids=OPS.keys())
differentiable = {name: op for name, op in OPS.items() if not op.is_step}
every_differentiable_op = parametrize("op", differentiable.values(), ids=differentiable.keys())


def equal(actual, expected) -> bool:
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def all_grads(outputs: tuple[Tensor, ...], inputs: Inputs) -> Inputs:
    return grads(outputs, asking(inputs), use=(True,) * len(outputs))


@every_op
def test_opcheck(op, device):
    check_op(op, op.make(dtype=torch.float32, device=device))


@every_differentiable_op
def test_opcheck_with_gradients(op, device):
    check_op(op, ask(op.make(dtype=torch.float32, device=device)))


def check_op(op, inputs):
    overload = getattr(torch.ops.retnet, op.name)
    names = [a.name for a in overload.default._schema.arguments if not a.kwarg_only]
    args = [inputs.pop(name, None) for name in names]
    torch.library.opcheck(overload, tuple(args), {**inputs, **op.options})


MASKS = {"all": [True] * 4, "some": [False, True, False, True], "none": [False] * 4}
masks = parametrize("mask", MASKS.values(), ids=MASKS.keys())


@masks
@parametrize("there", [(True, True), (True, False), (False, False)], ids=["both", "q", "neither"])
def test_opcheck_rotary_backward(there, mask):
    inputs = rotary_inputs(dtype=torch.float32)
    incoming = [inputs[name] if used else None for name, used in zip("qk", there, strict=True)]
    args = (*incoming, inputs["positions"], inputs["frequencies"])
    options = {"style": "half", "output_mask": mask[:2]}
    torch.library.opcheck(torch.ops.retnet.rotary_backward, args, options)


@masks
@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("rank", [4, 2])
def test_opcheck_gated_group_norm_backward(rank, dtype, mask):
    """Each gradient has the dtype of its input. At rank 2 no gradient is a sum, so it could alias
    grad_out.
    """
    leading = (2, 5)[: rank - 2]
    inputs = norm_inputs(leading, bias="[H, Dv]", dtype=dtype, affine_dtype=dtype)
    grad_out = torch.randn_like(inputs["x"])
    options = {"eps": 1e-5, "norm": "layer", "output_mask": mask}
    backward = torch.ops.retnet.gated_group_norm_backward
    torch.library.opcheck(backward, (grad_out, *inputs.values()), options)
    torch.library.opcheck(backward, (grad_out, inputs["x"], None, None, inputs["bias"]), options)


@every_op
@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_and_offsets(dtype, op, device):
    """In the first case, every input has gaps and an odd offset. In the second, the last dimensions
    are strided. The third is the second with a dense state, because the CPU kernels take a state
    with dense rows.
    """
    inputs = op.make(dtype=dtype, device=device)
    gaps = {name: strided(x) for name, x in inputs.items()}
    turned = {n: x.mT.contiguous().mT if x.dim() > 1 else x for n, x in inputs.items()}
    expected = op(**{name: x.clone() for name, x in inputs.items()})
    dense = {**turned, "state": inputs["state"].clone()} if op.has_state else turned
    for case in (gaps, turned, dense):
        outputs = op(**case)
        assert all(x.is_contiguous() for x in outputs[: -1 if op.has_state else None])
        for x, y in zip(outputs, expected, strict=True):
            assert_close_to_reference(x, y.double(), dtype, factor=2)


@every_differentiable_op
def test_expanded_inputs(op, device):
    """The stride over the batch is 0. Gradients are included and sum over it."""
    inputs = ask(op.make(1, device=device))
    batched = [name for name in op.tokens if name in inputs and name not in ("weight", "bias")]
    expanded = {**inputs, **{n: inputs[n].expand(3, *inputs[n].shape[1:]) for n in batched}}
    if op.name == "rotary" and inputs["positions"].shape[0] == 1:
        expanded["positions"] = inputs["positions"].expand(3, *inputs["positions"].shape[1:])
    copies = ask({name: x.contiguous() for name, x in expanded.items()})
    outputs, expected = op(**expanded), op(**copies)
    assert equal(outputs, expected)
    actual, reference = all_grads(outputs, inputs), all_grads(expected, copies)
    for name, x in actual.items():
        summed = reference[name].sum_to_size(x.shape)
        torch.testing.assert_close(x, summed, rtol=1e-12, atol=1e-12)


@parametrize("op", [OPS["step"], OPS["fused"]], ids=["step", "fused"])
@parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_expanded_tokens_of_a_step(dtype, op, device):
    """The stride over batch and heads is 0 in all inputs except the state."""
    inputs = op.make(dtype=dtype, device=device)
    one = {n: x[:1, :1] for n, x in inputs.items() if n in op.tokens}
    expanded = {n: x.expand(*inputs[n].shape) for n, x in one.items()}
    copies = {n: x.contiguous() for n, x in expanded.items()}
    results = [op(**{**inputs, **x, "state": inputs["state"].clone()}) for x in (expanded, copies)]
    assert equal(*results)


@every_op
def test_outputs_share_no_memory_with_inputs(op, device):
    for dtype in (torch.float32, torch.float64):
        inputs = op.make(dtype=dtype, device=device)
        pointers = {x.untyped_storage().data_ptr() for x in inputs.values()}
        outputs = op(**inputs)[: -1 if op.has_state else None]
        assert pointers.isdisjoint(x.untyped_storage().data_ptr() for x in outputs)
        assert len({x.untyped_storage().data_ptr() for x in outputs}) == len(outputs)


@every_op
def test_the_inputs_are_left_alone(op, device):
    inputs = op.make(dtype=torch.float32, device=device)
    before = {name: x.clone() for name, x in inputs.items()}
    op(**inputs)
    changed = {name for name, x in inputs.items() if not torch.equal(x, before[name])}
    assert changed == ({"state"} if op.has_state else set())


@every_op
@parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, op, device):
    """Tokens are cast, and all other inputs stay float32."""
    inputs = op.make(dtype=torch.float32, device=device)
    cast = {n: x.to(dtype) if n in op.tokens else x.clone() for n, x in inputs.items()}
    with torch.autocast(device.type, dtype):
        outputs = op(**inputs)
    assert outputs[0].dtype == dtype
    assert equal(outputs, op(**cast))
    double = op.make(device=device)
    with torch.autocast(device.type, dtype):
        assert op(**double)[0].dtype == torch.float64  # as autocast does everywhere


@every_differentiable_op
def test_autocast_gradients_reach_float32_leaves(op, device):
    inputs = ask(op.make(dtype=torch.float32, device=device))
    with torch.autocast(device.type, torch.bfloat16):
        outputs = op(**inputs)
    assert all(x.dtype == torch.float32 for x in all_grads(outputs, inputs).values())


@every_op
@parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients(mode, op, device):
    inputs, again = (op.make(device=device) for _ in range(2))
    again = again if op.is_step else ask(again)
    expected = op(**inputs)
    with mode():
        outputs = op(**again)
    assert not any(x.requires_grad for x in outputs)
    assert equal(outputs, expected)


@every_differentiable_op
def test_activation_checkpointing(op, device):
    inputs = ask(op.make(device=device))
    expected = all_grads(op(**inputs), inputs)
    again = checkpoint(lambda: op(**inputs), use_reentrant=False)
    assert equal(all_grads(again, inputs).values(), expected.values())


@every_differentiable_op
def test_function_transforms_of_gradients_raise(op):
    if op.name == "linear":
        pytest.skip("torch's linear has them")
    inputs = op.make()
    name = next(name for name in op.tokens if name in inputs)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: op(**{**inputs, name: x})[0].sum())(inputs[name])


@every_op
def test_compile_with_dynamic_sizes(op, device):
    check_compiled(op, "aot_eager", device)


@parametrize("name", ["norm_layer", "fused"])
def test_compile_with_inductor(name):
    """inductor starts slowly, so one operator with gradients and one with a state represent the
    others.
    """
    check_compiled(OPS[name], "inductor", "cpu")


def check_compiled(op, backend, device):
    """One graph serves every batch and length, forward, backward and the update of the state,
    without a break or a recompilation.
    """
    torch._dynamo.reset()
    compiled = torch.compile(lambda **x: op(**x), fullgraph=True, dynamic=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for B, T in ((5, 11), (6, 13), (7, 17)):  # no size equals another size or 1
            made = [op.make(B, T, dtype=torch.float32, device=device) for _ in range(2)]
            inputs, plain = made if op.is_step else map(ask, made)
            outputs, expected = compiled(**inputs), op(**plain)
            for a, b in zip(outputs, expected, strict=True):
                torch.testing.assert_close(a, b)
            if op.has_state:
                assert torch.equal(inputs["state"], plain["state"])
            if op.is_step:
                continue
            actual, reference = all_grads(outputs, inputs), all_grads(expected, plain)
            for name in actual:
                torch.testing.assert_close(actual[name], reference[name])


def test_compile_of_a_loop_of_steps():
    """Several steps on one state in a graph run in order."""
    torch._dynamo.reset()

    def run(inputs, state):
        total = 0
        for _ in range(3):
            total = total + ops.retention_step(**inputs, state=state)
        return total

    inputs = step_inputs(dtype=torch.float32)
    state = inputs.pop("state")
    states = [state.clone(), state.clone()]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs, states[0]), run(inputs, states[1]))
    assert torch.equal(*states)


@every_op
def test_meta(op):
    inputs = op.make(dtype=torch.bfloat16)
    outputs = op(**{name: x.to("meta") for name, x in inputs.items()})
    for x, real in zip(outputs, op(**inputs), strict=True):
        assert x.is_meta and x.shape == real.shape and x.dtype == real.dtype


@every_op
def test_threads(op, device):

    def make() -> Inputs:
        inputs = op.make(device=device)
        return inputs if op.is_step else ask(inputs)

    def run() -> list[Tensor]:
        inputs = make()
        outputs = op(**inputs)
        return [*outputs, *([] if op.is_step else all_grads(outputs, inputs).values())]

    expected, results = run(), {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: run()})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(results[n], expected) for n in range(4))
