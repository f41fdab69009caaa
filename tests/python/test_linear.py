# SPDX-License-Identifier: Apache-2.0
"""linear against its definition, on every instruction set and by oneDNN, and the Linear layers that
call it: so that hooks, subclasses and replaced modules count."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import retnet.cpp
from cases_nn import make_model, random_ids
from cases_ops import strided
from retnet.nn.linear import Linear
from retnet.ops import linear
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
    out = linear(x, weight, bias)
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
    assert torch.equal(linear(x[2], weight, offset), four[2])


def test_strides(path):
    """Of x and of bias any, of the weight's rows any; a transposed weight is torch's."""
    x, weight, bias = normal(2, 1, 37), normal(2000, 37, seed=1), normal(2000, seed=2)
    expected = check(x, weight, bias)
    apart = normal(2000, 50)[:, 5:42].copy_(weight)
    assert torch.equal(linear(strided(x), apart, strided(bias)), expected)
    transposed = weight.T.contiguous().T
    assert torch.equal(linear(x, transposed, bias), F.linear(x, transposed, bias))


def test_threads_change_no_bit(path, threads):
    x, weight = normal(3, 300), normal(1001, 300, seed=1)
    threads(1)
    alone = linear(x, weight)
    threads(3)
    assert torch.equal(linear(x, weight), alone)


def test_large_and_special_values(path):
    """Sums are wider than bfloat16, and what is not finite stays in its own output."""
    x = torch.full((1, 4096), 1.0, dtype=BF16)
    weight = torch.ones(3, 4096, dtype=BF16)
    weight[1, 100], weight[2, 4095] = torch.inf, torch.nan
    out = linear(x, weight)
    assert out[0, 0] == 4096 and out[0, 1] == torch.inf and torch.isnan(out[0, 2])


@parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_other_dtypes_and_more_rows_are_torchs(dtype, device):
    weight, bias = normal(9, 37, dtype=dtype).to(device), normal(9, dtype=dtype).to(device)
    x = normal(3, 37, dtype=dtype).to(device)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    many, weight = normal(5, 37).to(device), weight.to(BF16)
    assert torch.equal(linear(many, weight), F.linear(many, weight))


@parametrize("shape", [(0, 5), (2, 0), (0, 0)], ids=str)
def test_empty(shape):
    x, weight, bias = normal(*shape), normal(3, shape[1]), normal(3)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert linear(normal(2, 5), normal(0, 5)).shape == (2, 0)


def test_off_by_the_environment(monkeypatch):
    """The kernel asks for an instruction set, torch's linear does not."""
    x, weight = normal(1, 37), normal(9, 37)
    monkeypatch.setenv("RETNET_CPU", "none")
    with pytest.raises(ValueError, match="RETNET_CPU must be one of"):
        linear(x, weight)
    monkeypatch.setenv("RETNET_CPU_LINEAR", "0")
    assert torch.equal(linear(x, weight), F.linear(x, weight))


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
}


@parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(changes, message):
    with pytest.raises(RuntimeError) as error:
        linear(**({"x": normal(2, 5), "weight": normal(3, 5), "bias": None} | changes))
    assert str(error.value).splitlines()[0] == f"linear: {message}"


# Both kernels as citizens of PyTorch, and the gradients of oneDNN's
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any CPU for which torch has oneDNN, which CPU kernels of other architectures lack."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setenv("RETNET_CPU_LINEAR", "1")


def many(rows: tuple[int, ...] = (2, 64), n_in: int = 256, n_out: int = 300) -> list[Tensor]:
    """x, weight and bias of at least as many numbers as oneDNN takes."""
    shapes = ((*rows, n_in), (n_out, n_in), (n_out,))
    return [normal(*s, dtype=torch.float32, seed=i) for i, s in enumerate(shapes)]


def by_onednn(out: Tensor) -> bool:
    return type(out.grad_fn).__name__ == "CppFunction"


@parametrize("bias", [True, False], ids=["bias", "plain"])
@parametrize("layout", ["dense", "strided", "transposed", "expanded"])
def test_onednn_against_float64(layout, bias, onednn):
    inputs = many((3, 47))[: 2 + bias]
    if layout == "strided":
        inputs = [strided(t) for t in inputs]
    elif layout == "transposed":
        inputs = [t.mT.contiguous().mT if t.dim() > 1 else t for t in inputs]
    elif layout == "expanded":
        inputs[0] = inputs[0][:1].expand(3, 47, 256)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    for t in inputs:
        t.requires_grad_()
    out, expected = linear(*inputs), F.linear(*wide)
    assert by_onednn(out) and out.is_contiguous()
    assert_close_to_reference(out, expected, torch.float32)
    incoming = normal(*out.shape, dtype=torch.float32, seed=3)
    if layout == "expanded":
        incoming = incoming[:, :1].expand_as(out)
    actual = torch.autograd.grad(out, inputs, incoming)
    reference = torch.autograd.grad(expected, wide, incoming.double())
    for mine, its, t in zip(actual, reference, inputs, strict=True):
        assert mine.shape == t.shape
        assert_close_to_reference(mine, its, torch.float32, grad=True)
    # The product and x's gradient are oneDNN's: its bits, from operands that it takes as they are.
    if layout == "dense" and not bias:
        x, weight = (t.detach() for t in inputs)
        product = torch.ops.mkldnn._linear_pointwise
        assert torch.equal(out, product(x, weight, None, "none", [], ""))
        assert torch.equal(actual[0], product(incoming, weight.T, None, "none", [], ""))


def test_onednn_as_this_cpu_has_it(monkeypatch):
    """Without the environment variable: MKL's gradient of the weight, or no oneDNN at all."""
    monkeypatch.delenv("RETNET_CPU_LINEAR", raising=False)
    inputs = [t.requires_grad_() for t in many()]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    linear(*inputs).square().sum().backward()
    F.linear(*wide).square().sum().backward()
    for mine, its in zip(inputs, wide, strict=True):
        assert_close_to_reference(mine.grad, its.grad, torch.float32, grad=True)


@parametrize("asked", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_onednn_keeps_and_computes_what_is_asked(asked, onednn):
    """Of x and the weight each is kept for the other's gradient alone."""
    inputs, kept = many(), []
    for i in asked:
        inputs[i].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = linear(*inputs)
    assert by_onednn(out)
    assert {t.data_ptr() for t in kept} == {inputs[1 - i].data_ptr() for i in asked if i < 2}
    out.square().sum().backward()
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    F.linear(*wide).square().sum().backward()
    for t, its in zip(inputs, wide, strict=True):
        assert (t.grad is None) == (its.grad is None)
        if its.grad is not None:
            assert_close_to_reference(t.grad, its.grad, torch.float32, grad=True)


def test_onednn_twice_differentiable(onednn):
    def second(inputs: list[Tensor], call) -> tuple[Tensor, ...]:
        inputs = [t.requires_grad_() for t in inputs]
        first = torch.autograd.grad(call(*inputs).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    reference = second([t.double() for t in many()], F.linear)
    for mine, its in zip(second(many(), linear), reference, strict=True):
        assert_close_to_reference(mine, its, torch.float32, grad=True)


OTHERS = {
    "rows": ((127,), 256, 256),
    "in": ((128,), 255, 256),
    "out": ((128,), 256, 255),
    "one row": ((), 256, 256),
    "none": ((0,), 256, 256),
}


@parametrize("shape", OTHERS.values(), ids=OTHERS)
def test_smaller_products_are_torchs(shape, onednn):
    x, weight, bias = many(*shape)
    out = linear(x, weight.requires_grad_(), bias)
    assert not by_onednn(out) and torch.equal(out, F.linear(x, weight, bias))


def test_onednn_off(monkeypatch):
    """By the environment, and where torch's own switch says so."""
    x, weight, bias = many()
    weight.requires_grad_()
    monkeypatch.setenv("RETNET_CPU_LINEAR", "1")
    with torch.backends.mkldnn.flags(enabled=False):
        assert not by_onednn(linear(x, weight, bias))
    monkeypatch.setenv("RETNET_CPU_LINEAR", "0")
    out = linear(x, weight, bias)
    assert not by_onednn(out) and torch.equal(out, F.linear(x, weight, bias))


def test_other_derivatives_are_torchs(onednn):
    """Forward mode, and the transforms of torch.func."""
    inputs, tangents = many(), [t + 1 for t in many()]
    for actual, expected in zip(
        torch.func.jvp(linear, tuple(inputs), tuple(tangents)),
        torch.func.jvp(F.linear, tuple(inputs), tuple(tangents)),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(inputs[0], tangents[0])
        tangent = torch.autograd.forward_ad.unpack_dual(linear(x, *inputs[1:])).tangent
    torch.testing.assert_close(tangent, F.linear(tangents[0], inputs[1]))
    x = torch.stack([inputs[0], tangents[0]])
    together = torch.vmap(torch.func.grad(lambda x: linear(x, *inputs[1:]).sum()))(x)
    torch.testing.assert_close(together, torch.ones(*x.shape[:-1], 300) @ inputs[1])


@parametrize("rows", [2, 128])
@parametrize("bias", [True, False], ids=["bias", "plain"])
@parametrize("dtype", [BF16, torch.float32], ids=str)
def test_opcheck(dtype, bias, rows, onednn, device):
    inputs = [t.to(device, dtype) for t in many((rows,))[: 2 + bias]]
    # With shapes that are not known the product is torch's, whose sums have another order.
    torch.library.opcheck(torch.ops.retnet.linear, tuple(inputs), rtol=1e-4, atol=1e-4)
    if dtype == torch.float32:
        asking = tuple(t.clone().requires_grad_() for t in inputs)
        torch.library.opcheck(torch.ops.retnet.linear, asking, rtol=1e-4, atol=1e-4)


@parametrize("rows", [2, 128])
def test_autocast(rows, onednn):
    inputs = many((rows,))
    for t in inputs:
        t.requires_grad_()
    with torch.autocast("cpu", BF16):
        out = linear(*inputs)
        with torch.no_grad():
            step = linear(*inputs)
    assert out.dtype == BF16
    assert torch.equal(step, linear(*(t.detach().to(BF16) for t in inputs)))
    low = [t.detach().to(BF16).requires_grad_() for t in inputs]
    for mine, its in zip(
        torch.autograd.grad(out.float().sum(), inputs),
        torch.autograd.grad(F.linear(*low).float().sum(), low),
        strict=True,
    ):
        assert mine.dtype == torch.float32 and torch.equal(mine, its.float())


# The layers
# --------------------------------------------------------------------------------------------------


class Seen(TorchDispatchMode):
    """Counts the calls of linear and of torch's matrix products."""

    def __init__(self):
        super().__init__()
        self.steps = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.steps += func is torch.ops.retnet.linear.default
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
    expected = linear(x, layer.weight, layer.bias)
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
    """A compiled step takes retnet's, for any batch, as does one exported with strict=True; else
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
        assert ("retnet.linear" in kinds[-1]) == (rows <= 4)
    ids, state = random_ids(2, 1), model.config.make_state(2)
    program = torch.export.export(model, (ids,), {"state": state})
    assert "retnet.linear" not in str(program.graph)
    logits = program.module()(ids, state=state).logits
    torch.testing.assert_close(logits, model(ids, state=state).logits, rtol=0.05, atol=0.05)
    program = torch.export.export(model, (ids,), {"state": state}, strict=True)
    assert "retnet.linear" in str(program.graph)
    logits = program.module()(ids, state=state).logits
    assert torch.equal(logits, model(ids, state=state).logits)


@pytest.mark.not_poisoned
@parametrize(("strict", "with_grad"), [(False, False), (False, True), (True, True)], ids=str)
def test_exported_for_any_batch(strict, with_grad):
    batch, layer = torch.export.Dim("B", min=1, max=64), Linear(6, 5, dtype=BF16)
    shapes = {"x": {0: batch}}
    with torch.set_grad_enabled(with_grad):
        program = torch.export.export(layer, (normal(2, 6),), dynamic_shapes=shapes, strict=strict)
    assert "retnet.linear" not in str(program.graph)
    assert program.module()(normal(7, 6)).shape == (7, 5)


def test_the_cpp_layer_alone():
    torch.manual_seed(0)
    config = make_model().config
    made = retnet.cpp.FeedForward(config, dtype=BF16)
    with torch.no_grad():
        assert seen(made, normal(2, config.embed_dim)) == (2, 0)
        assert seen(made, normal(5, config.embed_dim))[0] == 0


@parametrize("tied", [False, True])
def test_same_bits_in_python_and_cpp_by_onednn(tied, onednn):
    """Logits, the loss and its gradients, of more tokens than a chunk of the loss takes."""
    sizes = {
        "embed_dim": 256,
        "key_dim": 256,
        "value_dim": 512,
        "ffn_dim": 300,
        "vocab_size": 40_000,
    }
    model = make_model(torch.float32, **sizes, bias=True, tie_embeddings=tied)
    other, ids = twin_of(model, torch.float32), torch.randint(40_000, (2, 600))
    with torch.no_grad():
        same(other(ids).logits, model(ids).logits)
    calls = {m: seen(lambda m=m: m(ids, labels=ids).loss.backward()) for m in (model, other)}
    # The head in two chunks; and as many gradients of x and of weights.
    assert calls[model] == calls[other] == (3 * (LINEARS + 1), 0)
    for mine, its in zip(other.parameters(), model.parameters(), strict=True):
        same(mine.grad, its.grad)


@pytest.mark.not_poisoned
def test_compiled_training_is_torchs(onednn):
    """In float32 the compiler has products of its own to choose from."""
    layer, x = Linear(256, 256, dtype=torch.float32), normal(128, 256, dtype=torch.float32)
    assert by_onednn(layer(x))
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), F.linear(x, layer.weight, layer.bias))
