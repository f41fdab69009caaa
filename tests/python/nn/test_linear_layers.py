# SPDX-License-Identifier: Apache-2.0
"""The Linear layers that call retnet.ops.linear, in Python and in C++: when they call it, and that
hooks, subclasses and replaced modules still take effect.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.ao.quantization import quantize_dynamic
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import retnet.cpp
from retnet import _C, RetNetConfig
from retnet.generation import generate
from retnet.nn import RetNetForCausalLM
from retnet.nn.linear import Linear, _is_faster_compiled
from retnet.nn.linear import linear as plain_linear
from retnet.ops import linear
from support.cases.cpp import same, twin_of
from support.cases.nn import make_model, random_ids
from support.cases.ops import BF16, by_onednn, normal
from support.paths import ROOT

parametrize = pytest.mark.parametrize


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


LINEARS = (
    2 * 7 + 1
)  # the small model has 2 layers, each with 5 in retention and 2 in the FFN, and the head


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
    """Takes the place of a Linear, as LoRA modules do."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Wrapped(Tensor):
    """A tensor subclass, like DTensors and quantised weights."""


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
    """A compiled step calls retnet's operator for any batch, as does one exported with strict=True.
    Any other exported step calls only torch's linear.
    """
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
        assert ("retnet.linear" in kinds[-1]) == (rows <= FEW)
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
    """The logits, the loss and its gradients agree for more tokens than a chunk of the loss
    holds.
    """
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
    # The head runs in two chunks. There are as many gradients of x, besides those of the weights.
    assert calls[model] == calls[other] == (2 * (LINEARS + 1), LINEARS + 1)
    for mine, its in zip(other.parameters(), model.parameters(), strict=True):
        same(mine.grad, its.grad)


@pytest.mark.not_poisoned
def test_compiled_training_is_torchs(onednn):
    """In float32 the compiler can choose among products of its own."""
    layer, x = Linear(256, 256, dtype=torch.float32), normal(128, 256, dtype=torch.float32)
    assert by_onednn(layer(x))
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), F.linear(x, layer.weight, layer.bias))


@torch.no_grad()
def test_what_torchs_linear_takes_too(onednn):
    """Nested tensors work, and the function accepts a weight of one row."""
    layer = Linear(256, 256, dtype=torch.float32)
    parts = [normal(rows, 256, dtype=torch.float32) for rows in (3, 200)]
    config = make_model(embed_dim=256, ffn_dim=256).config
    for module in (layer, retnet.cpp.FeedForward(config, dtype=torch.float32)):
        out = module(torch.nested.as_nested_tensor(parts))
        for mine, part in zip(out.unbind(), parts, strict=True):
            torch.testing.assert_close(mine, module(part), rtol=1e-4, atol=1e-4)
    weight = layer.weight[0]
    assert torch.equal(plain_linear(parts[1], weight), F.linear(parts[1], weight))


ASKED = {
    "few rows": (BF16, 4, 64, "without gradients"),
    "more rows": (BF16, 5, 64, "never"),
    "float32": (torch.float32, 4, 64, "never"),
    "many rows": (torch.float32, 128, 256, "always"),
    "fewer rows": (torch.float32, 127, 256, "never"),
}


@parametrize("with_grad", [False, True])
@parametrize(("dtype", "rows", "size", "when"), ASKED.values(), ids=ASKED)
def test_the_operator_decides(dtype, rows, size, when, with_grad, onednn):
    """The function that the layer asks gives the same answer as the operator itself."""
    layer, x = Linear(size, size, dtype=dtype), normal(rows, size, dtype=dtype)
    answer = when == "always" or (when == "without gradients" and not with_grad)
    with torch.set_grad_enabled(with_grad):
        assert _C.has_faster_linear(x, layer.weight) == answer
        assert seen(layer, x)[0] == seen(linear, x, layer.weight, layer.bias)[0] == answer


FEW = _C.linear_few_rows
# The arguments, and whether grad mode is on.
BOTH_DECIDE = {
    "one row": (normal(1, 64), normal(32, 64), False),
    "most rows": (normal(FEW, 64), normal(32, 64), False),
    "more rows": (normal(FEW + 1, 64), normal(32, 64), False),
    "vector": (normal(64), normal(32, 64), False),
    "scalar": (normal(), normal(32, 64), False),
    "most rows of three dimensions": (normal(1, FEW, 64), normal(32, 64), False),
    "more rows of three dimensions": (normal(2, FEW, 64), normal(32, 64), False),
    "rows with gaps": (normal(FEW, 128)[:, ::2], normal(32, 64), False),
    "weight with gaps": (normal(1, 64), normal(32, 128)[:, :64], False),
    "weight of one row": (normal(1, 64), normal(64), False),
    "with gradients": (normal(1, 64), normal(32, 64), True),
    "float16": (normal(1, 64, dtype=torch.float16), normal(32, 64, dtype=torch.float16), False),
    "few of float32": (normal(1, 64, dtype=torch.float32), normal(32, 64).float(), False),
    "other weight": (normal(1, 64), normal(32, 64, dtype=torch.float32), False),
    "other x": (normal(1, 64, dtype=torch.float32), normal(32, 64), False),
    "meta": (normal(1, 64).to("meta"), normal(32, 64).to("meta"), False),
    "nested": (torch.nested.as_nested_tensor([normal(1, 64)]), normal(32, 64), False),
}
OPERATOR_FALLS_BACK = {
    "transposed weight": (normal(1, 64), normal(64, 32).T, ""),
    "no rows": (normal(0, 64), normal(32, 64), ""),
    "no outputs": (normal(1, 64), normal(0, 64), ""),
    "turned off": (normal(1, 64), normal(32, 64), "0"),
}


@parametrize(("x", "weight", "with_grad"), BOTH_DECIDE.values(), ids=BOTH_DECIDE)
def test_compiled_code_decides_as_the_operator(x, weight, with_grad):
    with torch.set_grad_enabled(with_grad):
        assert _is_faster_compiled(x, weight) == _C.has_faster_linear(x, weight)


def test_the_table_of_decisions_has_both():
    with torch.no_grad():
        found = [_C.has_faster_linear(x, w) for x, w, with_grad in BOTH_DECIDE.values()]
    assert found.count(True) == 7 and found.count(False) == 10


@torch.no_grad()
@parametrize(("x", "weight", "setting"), OPERATOR_FALLS_BACK.values(), ids=OPERATOR_FALLS_BACK)
def test_the_operator_runs_torchs_where_compiled_code_calls_it(x, weight, setting, monkeypatch):
    if setting:
        monkeypatch.setenv("RETNET_CPU_LINEAR", setting)
    assert _is_faster_compiled(x, weight) and not _C.has_faster_linear(x, weight)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_the_documented_number_of_rows():
    numerics = (ROOT / "docs/numerics.md").read_text()
    assert f"up to {FEW} rows of bfloat16" in linear.__doc__
    assert f"This case covers up to {FEW} rows:" in numerics


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@torch.no_grad()
def test_transforms_tracers_and_layouts_get_torchs(onednn):
    """The operator has no product for them, or cannot be asked."""
    for layer, x in (
        (Linear(256, 256, dtype=torch.float32), normal(3, 128, 256, dtype=torch.float32)),
        (Linear(64, 64, dtype=BF16), normal(3, 2, 64)),
    ):
        plain = partial(F.linear, weight=layer.weight, bias=layer.bias)
        assert torch.equal(torch.vmap(layer)(x), torch.vmap(plain)(x))
        assert torch.equal(torch.fx.symbolic_trace(layer)(x), plain(x))
        assert _C.has_faster_linear(x[0], layer.weight)
        assert not _C.has_faster_linear(x[0], layer.weight.detach().to_sparse_csr())


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@parametrize(
    ("dtype", "bound"), [(torch.qint8, 0.08), (torch.float16, 1e-3)], ids=["int8", "float16"]
)
@parametrize("tied", [False, True])
def test_quantize_dynamic_converts_every_layer(tied, dtype, bound):
    """Its layers first get torch's class, as the guide says. The quantized model can also
    decode.
    """
    guide = (ROOT / "docs/python/guide.md").read_text()
    assert f"{100 * bound:g}% of their norm in int8" in guide or f"{100 * bound:g}% in fl" in guide
    torch.manual_seed(0)
    model = RetNetForCausalLM(replace(RetNetConfig.preset("tiny"), tie_embeddings=tied)).eval()
    ids = torch.randint(256, (2, 40))
    with torch.no_grad():
        expected = model(ids).logits
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 22 - tied
    for layer in layers:
        assert type(layer) is Linear
        layer.__class__ = nn.Linear
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected)
    quantized = quantize_dynamic(model, {nn.Linear}, dtype=dtype)
    assert sum(isinstance(m, QuantizedLinear) for m in quantized.modules()) == len(layers)
    with torch.no_grad():
        error = quantized(ids).logits - expected
    assert 0 < error.norm() < bound * expected.norm()
    (tokens,) = generate(quantized, [ids[0, :4]], max_new_tokens=5, temperature=0)
    assert len(tokens) == 9
