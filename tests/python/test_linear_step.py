# SPDX-License-Identifier: Apache-2.0
"""linear_step against its definition on every instruction set, and the Linear layers that call it:
in decoding alone, and so that hooks, subclasses and replaced modules count."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import retnet.cpp
from cases_nn import make_model, random_ids
from cases_ops import strided
from retnet.nn.linear import Linear
from retnet.ops import linear_step
from test_cpp import same, twin_of
from test_cpu_kernels import instruction_sets
from tolerances import assert_close_to_reference

parametrize = pytest.mark.parametrize
BF16 = torch.bfloat16


@pytest.fixture(params=instruction_sets())
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test on one instruction set."""
    monkeypatch.setenv("RETNET_CPU", request.param)
    return request.param


def normal(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = linear_step(x, weight, bias)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert out.is_contiguous() and out.dtype == x.dtype
    assert_close_to_reference(out, expected, x.dtype)
    return out


@parametrize("bias", [True, False], ids=["bias", "plain"])
@parametrize("n_out", [1, 3, 50_001])
@parametrize("n_in", [1, 7, 428])
def test_against_float64(n_in, n_out, bias, path):
    """And a row has the same bits alone as beside others."""
    if path == "emulated" and n_in * n_out > 1e7:
        pytest.skip("the arithmetic of avx512_bf16, slowly: 50,001 rows of 7 are enough")
    x, weight = normal(4, n_in), normal(n_out, n_in, seed=1)
    offset = normal(n_out, seed=2) if bias else None
    four = check(x, weight, offset)
    for rows in (1, 2, 3):
        assert torch.equal(check(x[:rows], weight, offset), four[:rows])
    assert torch.equal(linear_step(x[2], weight, offset), four[2])


def test_strides(path):
    """Of x and of bias any, of the weight's rows any; a transposed weight is torch's."""
    x, weight, bias = normal(2, 1, 37), normal(2000, 37, seed=1), normal(2000, seed=2)
    expected = check(x, weight, bias)
    apart = normal(2000, 50)[:, 5:42].copy_(weight)
    assert torch.equal(linear_step(strided(x), apart, strided(bias)), expected)
    transposed = weight.T.contiguous().T
    assert torch.equal(linear_step(x, transposed, bias), F.linear(x, transposed, bias))


def test_threads_change_no_bit(path, threads):
    x, weight = normal(3, 300), normal(1001, 300, seed=1)
    threads(1)
    alone = linear_step(x, weight)
    threads(3)
    assert torch.equal(linear_step(x, weight), alone)


def test_large_and_special_values(path):
    """Sums are wider than bfloat16, and what is not finite stays in its own output."""
    x = torch.full((1, 4096), 1.0, dtype=BF16)
    weight = torch.ones(3, 4096, dtype=BF16)
    weight[1, 100], weight[2, 4095] = torch.inf, torch.nan
    out = linear_step(x, weight)
    assert out[0, 0] == 4096 and out[0, 1] == torch.inf and torch.isnan(out[0, 2])


@parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_other_dtypes_and_more_rows_are_torchs(dtype, device):
    weight, bias = normal(9, 37, dtype=dtype).to(device), normal(9, dtype=dtype).to(device)
    x = normal(3, 37, dtype=dtype).to(device)
    assert torch.equal(linear_step(x, weight, bias), F.linear(x, weight, bias))
    many, weight = normal(5, 37).to(device), weight.to(BF16)
    assert torch.equal(linear_step(many, weight), F.linear(many, weight))


@parametrize("shape", [(0, 5), (2, 0), (0, 0)], ids=str)
def test_empty(shape):
    x, weight, bias = normal(*shape), normal(3, shape[1]), normal(3)
    assert torch.equal(linear_step(x, weight, bias), F.linear(x, weight, bias))
    assert linear_step(normal(2, 5), normal(0, 5)).shape == (2, 0)


def test_off_by_the_environment(monkeypatch):
    """The kernel asks for an instruction set, torch's linear does not."""
    x, weight = normal(1, 37), normal(9, 37)
    monkeypatch.setenv("RETNET_CPU", "none")
    with pytest.raises(ValueError, match="RETNET_CPU must be one of"):
        linear_step(x, weight)
    monkeypatch.setenv("RETNET_CPU_LINEAR", "0")
    assert torch.equal(linear_step(x, weight), F.linear(x, weight))


ERRORS = {
    "x": ({"x": normal()}, "x must have shape [..., in], got []"),
    "integers": (
        {"x": torch.zeros(2, 5, dtype=torch.int32)},
        "x must be float32, float64, bfloat16 or float16, got int32",
    ),
    "rank": ({"weight": normal(5)}, "weight must have shape [out, in], got [5]"),
    "in": ({"weight": normal(3, 4)}, "weight must have shape [out, in] = [3, 5], got [3, 4]"),
    "dtype": ({"weight": normal(3, 5).float()}, "weight must be bfloat16 (like x), got float32"),
    "bias": ({"bias": normal(4)}, "bias must have shape [out] = [3], got [4]"),
    "bias's dtype": ({"bias": normal(3).half()}, "bias must be bfloat16 (like x), got float16"),
    "device": ({"weight": normal(3, 5).to("meta")}, "weight must be on x's device cpu, got meta"),
    "gradient": (
        {"weight": normal(3, 5).requires_grad_()},
        "weight must not require grad while grad mode is on (the step has no gradient: call it "
        "under torch.no_grad(), or torch's linear), got requires_grad=True",
    ),
}


@parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(changes, message):
    with pytest.raises(RuntimeError) as error:
        linear_step(**({"x": normal(2, 5), "weight": normal(3, 5), "bias": None} | changes))
    assert str(error.value).splitlines()[0] == f"linear_step: {message}"


@parametrize("bias", [True, False], ids=["bias", "plain"])
@parametrize("dtype", [BF16, torch.float32], ids=str)
def test_opcheck(dtype, bias, device):
    x, weight = normal(2, 1, 7, dtype=dtype), normal(3, 7, dtype=dtype)
    inputs = [x.to(device), weight.to(device)] + [normal(3, dtype=dtype).to(device)] * bias
    torch.library.opcheck(torch.ops.retnet.linear_step, tuple(inputs))


def test_autocast():
    x, weight, bias = (normal(*s, dtype=torch.float32) for s in ((2, 7), (3, 7), (3,)))
    with torch.autocast("cpu", BF16):
        out = linear_step(x, weight, bias)
    assert torch.equal(out, linear_step(x.to(BF16), weight.to(BF16), bias.to(BF16)))


# The layers
# --------------------------------------------------------------------------------------------------


class Seen(TorchDispatchMode):
    """Counts the calls of linear_step and of torch's matrix products."""

    def __init__(self):
        super().__init__()
        self.steps = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.steps += func is torch.ops.retnet.linear_step.default
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


def seen(call, *args, **options) -> tuple[int, int]:
    with Seen() as mode:
        call(*args, **options)
    return mode.steps, mode.products


LINEARS = 2 * 7 + 1  # of the small model: 2 layers of 5 in retention and 2 in the FFN, and the head


@parametrize("tied", [False, True])
@parametrize("twin", [False, True], ids=["Python", "C++"])
def test_what_decodes_takes_the_step(twin, tied):
    model = make_model(BF16, tie_embeddings=tied)
    model = twin_of(model, BF16) if twin else model
    ids = random_ids(4, 1)
    with torch.no_grad():
        state = model.config.make_state(4)
        assert seen(model, ids, state=state) == (LINEARS, 0)
        assert seen(model, random_ids(5, 1))[0] == 0  # five rows
        assert seen(model.float(), ids)[0] == 0
    assert seen(model.to(BF16), ids)[0] == 0  # with gradients


@parametrize("tied", [False, True])
@parametrize("rows", [1, 4, 5])
def test_same_bits_in_python_and_cpp(rows, tied):
    model = make_model(BF16, bias=True, ffn_gated=True, tie_embeddings=tied)
    other, ids = twin_of(model, BF16), random_ids(rows, 3)
    states = [model.config.make_state(rows) for _ in range(2)]
    with torch.no_grad():
        for t in range(3):
            step = ids[:, t : t + 1]
            a, b = (m(step, state=s) for m, s in zip((model, other), states, strict=True))
            same(b.logits, a.logits)
            same(tuple(b.state), tuple(a.state))
            states = [a.state, b.state]
        same(other(ids[:, :1], targets=ids[:, :1]).loss, model(ids[:, :1], targets=ids[:, :1]).loss)


class Doubled(nn.Linear):
    """As LoRA puts in a Linear's place."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Wrapped(Tensor):
    """As DTensors and quantised weights are."""


@torch.no_grad()
def test_hooks_subclasses_and_replacements_count():
    layer, x = Linear(6, 5, dtype=BF16), normal(1, 6)
    expected = linear_step(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
    with torch.autocast("cpu", torch.float16):
        half = layer(x)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected.float(), rtol=0.01, atol=0.01)
    calls = []
    layer.register_forward_hook(lambda module, args, out: calls.append(out) or -out)
    assert torch.equal(layer(x), -expected) and len(calls) == 1
    model = make_model(BF16)
    model.layers[0].retention.q_proj.__class__ = Doubled
    assert seen(model, random_ids(1, 1)) == (LINEARS - 1, 1)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.as_subclass(Wrapped))
    assert seen(model, random_ids(1, 1)) == (LINEARS - 2, 2)
    nn.utils.parametrize.register_parametrization(model.layers[1].ffn.up_proj, "weight", nn.Tanh())
    assert seen(model, random_ids(1, 1)) == (LINEARS - 2, 2)


@pytest.mark.not_poisoned
@torch.no_grad()
def test_compiled_and_exported_steps():
    """A compiled step takes linear_step, for any batch, as does one exported with strict=True; else
    an exported one is torch's alone."""
    model = make_model(BF16).eval()
    kinds = []

    def backend(graph, inputs):
        kinds.append({str(node.target) for node in graph.graph.nodes})
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for rows in (1, 2, 3, 5, 6):
        ids, state = random_ids(rows, 1), model.config.make_state(rows)
        assert torch.equal(compiled(ids, state=state).logits, model(ids, state=state).logits)
        assert ("retnet.linear_step" in kinds[-1]) == (rows <= 4)
    ids, state = random_ids(2, 1), model.config.make_state(2)
    program = torch.export.export(model, (ids,), {"state": state})
    assert "linear_step" not in str(program.graph)
    logits = program.module()(ids, state=state).logits
    torch.testing.assert_close(logits, model(ids, state=state).logits, rtol=0.05, atol=0.05)
    program = torch.export.export(model, (ids,), {"state": state}, strict=True)
    assert "linear_step" in str(program.graph)
    logits = program.module()(ids, state=state).logits
    assert torch.equal(logits, model(ids, state=state).logits)


@pytest.mark.not_poisoned
@parametrize(("strict", "with_grad"), [(False, False), (False, True), (True, True)], ids=str)
def test_exported_for_any_batch(strict, with_grad):
    batch, layer = torch.export.Dim("B", min=1, max=64), Linear(6, 5, dtype=BF16)
    shapes = {"x": {0: batch}}
    with torch.set_grad_enabled(with_grad):
        program = torch.export.export(layer, (normal(2, 6),), dynamic_shapes=shapes, strict=strict)
    assert "linear_step" not in str(program.graph)
    assert program.module()(normal(7, 6)).shape == (7, 5)


def test_the_cpp_layer_alone():
    torch.manual_seed(0)
    config = make_model().config
    made = retnet.cpp.FeedForward(config, dtype=BF16)
    with torch.no_grad():
        assert seen(made, normal(2, config.embed_dim)) == (2, 0)
        assert seen(made, normal(5, config.embed_dim))[0] == 0
