# SPDX-License-Identifier: Apache-2.0
"""What only a GPU shows, forward and backward. The tests are skipped if there is no GPU.

The host does not wait, calls stay on their stream and device, CUDA graphs capture them, offsets
have 64 bits, and calls that run the kernels work in autocast and torch.compile.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from retnet import ops
from support.cases.ops import (
    STYLES,
    Inputs,
    ask,
    asking,
    exact,
    fused_inputs,
    norm_inputs,
    rotary_inputs,
    step_inputs,
    strided,
)
from support.cases.retention import FORMS, make_inputs
from support.gpu import clones, waiting_raises
from support.tolerances import LOG_DECAY_LIMITS, assert_close_to_reference

parametrize = pytest.mark.parametrize
HALF = torch.bfloat16


@dataclass
class Call:
    """A call of an operator: its inputs, for a device and a seed, and its options."""

    op: str
    make: Callable[..., Inputs]
    options: dict = field(default_factory=dict)

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Returns the outputs and, for a step, the state that it updated in place."""
        out = getattr(ops, self.op)(**inputs, **self.options)
        state = (inputs["state"],) if "state" in inputs else ()
        return (*(out if isinstance(out, tuple) else (out,)), *state)


def packed(device, seed=0) -> Inputs:
    bounds = ([0, 70, 70, 71, 500], [0, 1, 100, 300, 500])[seed % 2]
    inputs = make_inputs(1, 500, 2, 64, 128, dtype=HALF, device=device, num_states=4, seed=seed)
    return {**inputs, "cu_seqlens": torch.tensor(bounds, dtype=torch.int32, device=device)}


def retention_call(*shape: int, dtype=HALF, **options) -> Call:
    return Call("retention", lambda **kw: make_inputs(*shape, dtype=dtype, **kw), options)


EPS = {"eps": 1e-5}
KERNELS = {
    "retention": retention_call(2, 200, 4, 64, 128),
    "retention_strided": Call(
        "retention",
        lambda **kw: {
            n: x.mT.contiguous().mT if n in "qkv" else x
            for n, x in make_inputs(2, 100, 4, 64, 64, dtype=HALF, **kw).items()
        },
    ),
    "retention_segments": retention_call(1, 4000, 1, 64, 64),
    "retention_packed": Call("retention", packed),
}
CALLS = {
    **KERNELS,
    **{f: retention_call(2, 100, 4, 8, 12, dtype=torch.float32, form=f) for f in FORMS},
    "rotary": Call("rotary", lambda **kw: rotary_inputs(dtype=HALF, **kw)),
    "rotary_half": Call(
        "rotary",
        lambda **kw: rotary_inputs(Dk=64, T=None, dtype=torch.float32, **kw),
        {"style": "half"},
    ),
    "norm": Call("gated_group_norm", lambda **kw: norm_inputs(dtype=HALF, **kw), EPS),
    "norm_rms": Call(
        "gated_group_norm", lambda **kw: norm_inputs(dtype=HALF, **kw), {**EPS, "norm": "rms"}
    ),
    "step": Call("retention_step", lambda **kw: step_inputs(dtype=HALF, **kw)),
    "step_slots": Call("retention_step", lambda **kw: step_inputs(S=7, dtype=HALF, **kw)),
    "fused": Call("multi_scale_retention_step", lambda **kw: fused_inputs(dtype=HALF, **kw), EPS),
    "fused_slots": Call(
        "multi_scale_retention_step", lambda **kw: fused_inputs(S=7, dtype=HALF, **kw), EPS
    ),
}
every_call = parametrize("call", CALLS.values(), ids=CALLS.keys())
WITH_KERNEL = {**KERNELS, "norm": CALLS["norm"], "norm_rms": CALLS["norm_rms"]}
every_kernel = parametrize("call", WITH_KERNEL.values(), ids=WITH_KERNEL.keys())


def leaves_of(inputs: Inputs) -> Inputs:
    """Returns copies that require gradients if the operator has any."""
    return clones(inputs) if "state" in inputs else ask(inputs)


def run(call: Call, leaves: Inputs) -> tuple[Tensor, ...]:
    """Returns the outputs and the gradients for output gradients of ones."""
    outputs = call(leaves)
    wanted = list(asking(leaves).values())
    incoming = [torch.ones_like(x) for x in outputs] if wanted else []
    return (*outputs, *(torch.autograd.grad(outputs, wanted, incoming) if wanted else ()))


def equal(actual, expected) -> bool:
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@parametrize("call", KERNELS.values(), ids=KERNELS.keys())
def test_the_kernel_runs(call, gpu):
    plan = ops.retention_plan(**call.make(device=gpu))
    assert plan.implementation == "kernel"
    assert (plan.segment_length > 0) == (call is KERNELS["retention_segments"])


@pytest.mark.not_poisoned
@parametrize("bounds", [None, [0, 70, 70, 71, 500]], ids=["whole", "packed"])
def test_gradient_of_log_decay(bounds, gpu):
    """Its kernel is one launch, and the host does not wait for it. The gradient agrees with the
    composite on the GPU and in float64 on the CPU. All heads have one gamma and are compared
    together, because a single sum may cancel.
    """
    B, N, H = (2, 2, 16) if bounds is None else (1, len(bounds) - 1, 16)
    decays = [math.log1p(-1 / 64)] * H
    inputs = make_inputs(B, 500, H, 64, 128, dtype=HALF, num_states=N, log_decay=decays, device=gpu)
    if bounds is not None:
        inputs["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32, device=gpu)
    leaves = ask(inputs)
    launched: list[str] = []

    def gradient(leaves: Inputs, form: str = "chunkwise") -> Tensor:
        outputs = ops.retention(**leaves, form=form)
        generator = torch.Generator().manual_seed(1)
        incoming = [torch.randint(-4, 5, x.shape, generator=generator).to(x) for x in outputs]
        torch.cuda.synchronize()
        launched.clear()
        with torch.profiler.profile() as profile:
            (grad,) = torch.autograd.grad(outputs, leaves["log_decay"], incoming)
            torch.cuda.synchronize()
        launched.extend(e.name for e in profile.events() if "grad_log_decay_kernel" in e.name)
        return grad.double().cpu()

    composite, expected = gradient(leaves, "recurrent"), gradient(exact(leaves))
    assert not launched
    actual = gradient(leaves)
    assert len(launched) == 1
    limit = LOG_DECAY_LIMITS[HALF] * expected.square().mean().sqrt()
    assert (actual - expected).square().mean().sqrt() <= limit
    assert (actual - composite).square().mean().sqrt() <= limit


@pytest.mark.not_poisoned  # each torch.empty would launch a kernel that fills it
@parametrize("style", STYLES)
@parametrize("strides", [torch.clone, strided], ids=["contiguous", "strided"])
def test_rotary_is_one_launch(style, strides, gpu):
    """One launch rotates q and k, forward and backward. Rows that are not aligned are copied
    first.
    """
    inputs = rotary_inputs(Dk=64, dtype=HALF, device=gpu)
    inputs |= {name: strides(inputs[name]).requires_grad_() for name in "qk"}
    outputs = ops.rotary(**inputs, style=style)
    ones = [torch.ones_like(x) for x in outputs]
    calls = {
        "forward": lambda: ops.rotary(**inputs, style=style),
        "backward": lambda: torch.autograd.grad(outputs, [inputs["q"], inputs["k"]], ones),
    }
    for name, call in calls.items():
        torch.cuda.synchronize()
        with torch.profiler.profile() as profile:
            call()
            torch.cuda.synchronize()
        on_device = torch.autograd.DeviceType.CUDA
        launched = [e.name for e in profile.events() if e.device_type == on_device]
        copies = 2 if strides is strided and name == "forward" else 0
        assert sum("rotary_kernel" in x for x in launched) == 1 and len(launched) == 1 + copies


@pytest.mark.not_poisoned
@every_call
def test_the_host_waits_for_nothing(call, gpu):
    leaves = leaves_of(call.make(device=gpu))
    run(call, leaves)  # once for handles and workspaces
    with waiting_raises():
        run(call, leaves)


def test_without_a_kernel_packed_sequences_are_waited_for(gpu):
    """This is documented. It also shows that the check above can fail."""
    inputs = packed(gpu)
    with pytest.raises(RuntimeError, match="synchroniz"), waiting_raises():
        ops.retention(**inputs, form="recurrent")


@every_call
def test_runs_on_the_current_stream(call, gpu):
    """The inputs arrive late on that stream, so a kernel on another stream would read zeros."""
    inputs = call.make(device=gpu)
    expected = run(call, leaves_of(inputs))
    late = {name: torch.zeros_like(x) for name, x in inputs.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)  # cycles, tens of milliseconds
        for name, x in late.items():
            x.copy_(inputs[name])
        results = run(call, leaves_of(late))
    torch.cuda.synchronize()
    assert equal(results, expected)


@every_call
def test_on_another_device_than_the_current_one(call, gpu):
    """The other device gives the same bits, and the current device does not change."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    if torch.cuda.get_device_name(0) != torch.cuda.get_device_name(1):
        pytest.skip("two GPUs of different kinds")
    expected = run(call, leaves_of(call.make(device=torch.device("cuda", 0))))
    with torch.cuda.device(0):
        results = run(call, leaves_of(call.make(device=torch.device("cuda", 1))))
        assert torch.cuda.current_device() == 0
    assert all(x.device.index == 1 for x in results)
    assert equal([x.cpu() for x in results], [x.cpu() for x in expected])


@every_kernel
def test_autocast(call, gpu):
    """float32 tokens are cast. The call gives the bits of a call with cast tokens, and gradients in
    float32.
    """
    half = leaves_of(call.make(device=gpu))
    expected = run(call, half)
    full = {n: x.detach().float() if x.dtype == HALF else x.detach() for n, x in half.items()}
    leaves = leaves_of(full)
    with torch.autocast("cuda", HALF):
        outputs = call(leaves)
    wanted = asking(leaves)
    grads = torch.autograd.grad(
        outputs, list(wanted.values()), [torch.ones_like(x) for x in outputs]
    )
    assert all(x.dtype == torch.float32 for x in grads)
    assert [x.dtype for x in outputs] == [x.dtype for x in expected[: len(outputs)]]
    assert equal(outputs, expected[: len(outputs)])
    assert equal(grads, [x.float() for x in expected[len(outputs) :]])


@pytest.mark.not_poisoned
@parametrize(
    ("name", "backend"),
    [
        *((name, "aot_eager") for name in WITH_KERNEL),
        ("retention_packed", "inductor"),
        ("norm", "inductor"),
    ],
)
def test_compile(name, backend, gpu):
    """Forward and backward are one graph. inductor starts slowly, so two operators represent the
    others.
    """
    torch._dynamo.reset()
    call = WITH_KERNEL[name]
    inputs = call.make(device=gpu)
    compiled = torch.compile(lambda x: call(x), fullgraph=True, backend=backend)
    actual, expected = (run(f, leaves_of(inputs)) for f in (compiled, call))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


@every_kernel
def test_double_backward_raises(call, gpu):
    leaves = leaves_of(call.make(device=gpu))
    first = next(iter(asking(leaves).values()))
    (grad,) = torch.autograd.grad(call(leaves)[0].square().sum(), first, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{call.op}_backward: double backward is not supported"):
        grad.sum().backward()


@every_call
def test_cuda_graph(call, gpu):
    """A captured call gives the same bits as a plain one for new values in the same memory, also
    for new bounds, slots and positions.
    """
    sources = [call.make(device=gpu, seed=seed) for seed in (1, 0)]
    for name, x in sources[1].items():
        if name in ("positions", "slots"):
            x.copy_(x.flip(0))
    expected = [[x.clone() for x in call(clones(source))] for source in sources]
    inputs = clones(sources[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call(inputs)
    for source, results in zip(sources, expected, strict=True):
        for name, x in inputs.items():
            x.copy_(source[name])
        graph.replay()
        assert equal(outputs, results)


def test_a_graph_of_a_step_decodes(gpu):
    """Each replay continues from the state that the last one left."""
    call = CALLS["fused"]
    tokens = [call.make(device=gpu, seed=seed) for seed in range(4)]
    inputs, state = clones(tokens[0]), tokens[0]["state"].clone()
    call(clones(inputs))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call(inputs)
    for position, token in enumerate(tokens):
        for name in ("q", "k", "v", "gate"):
            inputs[name].copy_(token[name])
        inputs["positions"].fill_(position)
        graph.replay()
        eager = {**inputs, "state": state}
        assert equal(outputs, call(eager))


@pytest.fixture(params=[pytest.param("large", marks=pytest.mark.large_memory)])
def large(gpu: torch.device) -> Tensor:
    """Returns a tensor [1, T, 4, 64] of more than 2^31 elements."""
    if torch.cuda.mem_get_info(gpu)[0] < 40 << 30:
        pytest.skip("a GPU with less than 40 GB free")
    return torch.randn(1, 2**31 // (4 * 64) + 1024, 4, 64, dtype=HALF, device=gpu)


@pytest.mark.not_poisoned
def test_retention_of_more_than_2_31_elements(large, gpu):
    """The result is right at the start. At the end it equals a call on the last tokens, because a
    token is forgotten after 256 others.
    """
    assert large.numel() > 2**31
    log_decay = torch.tensor([-0.5, -1.0, -2.0, -0.7], device=gpu)
    assert ops.retention_plan(large, large, large, log_decay).implementation == "kernel"
    out, state = ops.retention(large, large, large, log_decay)
    end = large[:, -512:].clone()
    expected, expected_state = ops.retention(end, end, end, log_decay)
    both = {"dtype": HALF, "factor": 2}  # two results are compared, each within the table
    assert_close_to_reference(out[:, -256:], expected[:, -256:].double(), **both)
    assert_close_to_reference(state, expected_state.double(), **both)
    start = large[:, :512].clone()
    expected, _ = ops.retention(start, start, start, log_decay)
    assert_close_to_reference(out[:, :512], expected.double(), **both)


@pytest.mark.not_poisoned
def test_rotary_of_more_than_2_31_elements(large, gpu):
    positions = torch.arange(large.shape[1], device=gpu)
    frequencies = rotary_inputs(Dk=64, device=gpu)["frequencies"]
    rotated, _ = ops.rotary(large, large, positions, frequencies)
    for rows in (slice(0, 100), slice(-100, None)):
        part = large[:, rows].clone()
        expected, _ = ops.rotary(part, part, positions[rows], frequencies)
        assert torch.equal(rotated[:, rows], expected)


@pytest.mark.not_poisoned
def test_norm_of_more_than_2_31_elements(large):
    out = ops.gated_group_norm(large, large, eps=1e-5)
    for rows in (slice(0, 100), slice(-100, None)):
        part = large[:, rows].clone()
        assert torch.equal(out[:, rows], ops.gated_group_norm(part, part, eps=1e-5))


@pytest.mark.not_poisoned
def test_gradients_of_retention_of_more_than_2_31_elements(large, gpu):
    """At the start and at the end, the gradients are those of a call on the tokens there. A token
    is forgotten after 256 others: grad_q of later tokens and grad_k, grad_v of earlier tokens do
    not depend on it.
    """
    log_decay = torch.tensor([-0.5, -1.0, -2.0, -0.7], device=gpu)

    def grads(x: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for _ in "qkv"]
        return torch.autograd.grad(ops.retention(*leaves, log_decay)[0], leaves, x)

    every = grads(large)
    for part, of_q, of_k in (
        (slice(0, 512), slice(0, 512), slice(0, 256)),
        (slice(-512, None), slice(256, 512), slice(0, 512)),
    ):
        expected = grads(large[:, part].clone())
        for actual, reference, known in zip(every, expected, (of_q, of_k, of_k), strict=True):
            assert_close_to_reference(
                actual[:, part][:, known], reference[:, known].double(), dtype=HALF, factor=2
            )


@pytest.mark.not_poisoned
def test_gradients_of_the_norm_of_more_than_2_31_elements(large):
    def grads(x: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for _ in range(2)]
        return torch.autograd.grad(ops.gated_group_norm(*leaves, eps=1e-5), leaves, x)

    every = grads(large)
    for rows in (slice(0, 100), slice(-100, None)):
        assert equal([x[:, rows] for x in every], grads(large[:, rows].clone()))
