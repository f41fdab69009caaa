# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of gated_group_norm agree with the float64 oracle."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retnet.ops import gated_group_norm
from support.cases.ops import NORMS, ask, asking, assert_rounded_once, exact, norm_inputs, strided
from support.cases.retention import DTYPES, grads
from support.oracles.gated_group_norm import gated_group_norm_by_definition
from support.tolerances import assert_close_to_reference, errors

parametrize = pytest.mark.parametrize
norms = parametrize("norm", NORMS)
EPS = 1e-5

# The inputs that are given, and the layouts of weight and bias.
PARTS = {
    "x": {"gate": False, "weight": "", "bias": ""},
    "x-gate": {"weight": "", "bias": ""},
    "x-weight[V]": {"gate": False, "weight": "[Dv]", "bias": ""},
    "x-weight[HV]": {"gate": False, "weight": "[H, Dv]", "bias": ""},
    "x-bias[V]": {"gate": False, "weight": "", "bias": "[Dv]"},
    "x-gate-bias[HV]": {"weight": "", "bias": "[H, Dv]"},
    "x-gate-weight[V]-bias[V]": {"weight": "[Dv]", "bias": "[Dv]"},
    "x-gate-weight[HV]-bias[HV]": {"weight": "[H, Dv]", "bias": "[H, Dv]"},
    "x-gate-weight[HV]-bias[V]": {},
}
parts = parametrize("part", PARTS.values(), ids=PARTS.keys())


def check(inputs, norm, eps=EPS):
    """Compares the output and all gradients with the oracle, at the tolerances of the table."""
    dtype = inputs["x"].dtype
    inputs = ask(inputs)
    out, reference = gated_group_norm(**inputs, eps=eps, norm=norm), exact(inputs)
    expected = gated_group_norm_by_definition(**reference, eps=eps, norm=norm)
    assert out.dtype == dtype and out.is_contiguous()
    assert_close_to_reference(out, expected, dtype)
    assert_rounded_once(out, expected)
    actual = grads((out,), inputs, use=(True,))
    expected = grads((expected,), reference, use=(True,))
    for name, x in inputs.items():
        assert actual[name].dtype == x.dtype and actual[name].is_contiguous()
        assert_close_to_reference(actual[name], expected[name], dtype, grad=True, name=name)
        assert_rounded_once(actual[name], expected[name])


@norms
@parametrize("dtype", DTYPES, ids=str)
@parts
def test_against_the_definition(part, dtype, norm, device):
    check(norm_inputs(**part, dtype=dtype, device=device), norm)


@norms
@parametrize("affine_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtype_of_weight_and_bias(affine_dtype, norm, device):
    """With bfloat16 tokens they may have either dtype, and their gradients have the same dtype as
    they.
    """
    inputs = norm_inputs(dtype=torch.bfloat16, affine_dtype=affine_dtype, device=device)
    check(inputs, norm)


@norms
@parts
def test_gradcheck(part, norm):
    inputs = ask(norm_inputs((2,), 2, 3, **part))
    assert torch.autograd.gradcheck(
        lambda *x: gated_group_norm(**dict(zip(inputs, x, strict=True)), eps=EPS, norm=norm),
        tuple(inputs.values()),
    )


@norms
@parametrize("leading", [(), (4,), (2, 3, 2)], ids=str)
def test_leading_dimensions(leading, norm, device):
    """There may be none: a decoded token has [H, Dv]."""
    check(norm_inputs(leading, device=device), norm)
    check(norm_inputs(leading, gate=False, weight="", bias="[H, Dv]", device=device), norm)


@parametrize("eps", [0.0, 1e-6, 0.1, 10.0])
@norms
def test_eps(norm, eps, device):
    check(norm_inputs(dtype=torch.float32, device=device), norm, eps)


def test_variance_from_centred_values(device):
    """If the mean is 16 deviations, mean(x^2) - mean(x)^2 in float32 misses by 10 tolerances."""
    inputs = norm_inputs((2,), 3, 64, dtype=torch.float32, device=device)
    inputs["x"] += 32
    check(inputs, "layer")


@norms
@parametrize("dtype", DTYPES, ids=str)
def test_extreme_gates(dtype, norm, device):
    """sigmoid saturates, and no intermediate value overflows."""
    inputs = norm_inputs((1,), 1, 8, dtype=dtype, bias="", device=device)
    gates = [0.0, -0.0, 1.0, -1.0, 100.0, -100.0, 6e4, -6e4]
    inputs["gate"] = torch.tensor(gates, dtype=dtype, device=device).view(1, 1, 8)
    inputs["x"] /= 16  # out = normed * 6e4 must fit into float16
    inputs["weight"] /= 4
    inputs = ask(inputs)
    out = gated_group_norm(**inputs, eps=1.0, norm=norm)
    expected = gated_group_norm_by_definition(**exact(inputs), eps=1.0, norm=norm)
    assert_close_to_reference(out, expected, dtype)
    assert all(torch.isfinite(g).all() for g in grads((out,), inputs, use=(True,)).values())


@norms
def test_constant_row(norm, device):
    """The variance is 0, so only eps is under the root."""
    inputs = norm_inputs((2,), 1, 4, dtype=torch.float32, device=device)
    inputs["x"][0] = 3.0
    check(inputs, norm)


@norms
@parametrize("poison", [math.nan, math.inf])
def test_a_poisoned_row_leaves_the_others(poison, norm, device):
    clean, dirty = (norm_inputs(dtype=torch.float32, device=device) for _ in range(2))
    clean = ask(clean)
    dirty["x"][1, 2, 0] = poison
    dirty = ask(dirty)
    results = []
    for inputs in (clean, dirty):
        out = gated_group_norm(**inputs, eps=EPS, norm=norm)
        result = grads((out,), inputs, use=(True,))
        rows = torch.cat([out, result["x"], result["gate"]], -1).flatten(0, 2)
        results.append(torch.cat([rows[:21], rows[22:]]))
    assert torch.equal(*results)


@norms
@parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.not_poisoned
@pytest.mark.large
def test_gradients_summed_over_many_rows(dtype, norm, device):
    """This tests the gradients of weight and bias. The oracle is float64 arithmetic of ATen, which
    the small cases compare with the definition.
    """
    inputs = ask(norm_inputs((20_000,), 2, 16, dtype=dtype, device=device))
    out, reference = gated_group_norm(**inputs, eps=EPS, norm=norm), exact(inputs)
    x = reference["x"]
    if norm == "layer":
        normed = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=EPS)
    else:
        normed = torch.nn.functional.rms_norm(x, x.shape[-1:], eps=EPS)
    silu = torch.nn.functional.silu(reference["gate"])
    expected = (normed * reference["weight"] + reference["bias"]) * silu
    actual = grads((out,), inputs, use=(True,))
    expected = grads((expected,), reference, use=(True,))
    for name in inputs:
        assert_close_to_reference(actual[name], expected[name], dtype, grad=True, name=name)
    if (
        dtype != torch.float32
    ):  # float32 sums of exact products do not have the rounding of the tokens
        assert errors(actual["weight"].cpu(), expected["weight"])[0] < 1e-5


PRESENCE = [
    [name for name, there in zip(["gate", "weight", "bias"], those, strict=True) if there]
    for those in product([False, True], repeat=3)
]


@parametrize("present", PRESENCE, ids=["-".join(["x", *names]) for names in PRESENCE])
def test_subset_of_gradients(present, device):
    """Each input alone requires a gradient, with each set of absent inputs. No input gets the
    gradient of another.
    """
    inputs = norm_inputs(dtype=torch.float32, device=device)
    inputs = {name: x for name, x in inputs.items() if name in ["x", *present]}
    every = ask(inputs)
    expected = grads((gated_group_norm(**every, eps=EPS),), every, use=(True,))
    for name in inputs:
        one = ask(inputs, name)
        out = gated_group_norm(**one, eps=EPS)
        assert torch.equal(grads((out,), asking(one), use=(True,))[name], expected[name]), name


@norms
def test_expanded_and_strided_incoming_gradients(norm, device):
    inputs = ask(norm_inputs(dtype=torch.bfloat16, device=device))
    out, leaves = gated_group_norm(**inputs, eps=EPS, norm=norm), list(inputs.values())
    ones = torch.ones_like(out)
    expected = torch.autograd.grad(out, leaves, ones, retain_graph=True)
    for incoming in (ones[:1, :1, :1, :1].expand(out.shape), strided(ones)):
        actual = torch.autograd.grad(out, leaves, incoming, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_an_undefined_incoming_gradient_gives_none():
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    inputs = ask(norm_inputs())
    out = Nothing.apply(gated_group_norm(**inputs, eps=EPS))
    found = torch.autograd.grad(out.sum(), list(inputs.values()), allow_unused=True)
    assert found == (None,) * 4


def test_gradients_share_no_memory_with_the_incoming_one():
    """If there is nothing to sum over, the gradient of bias has the values of grad_out."""
    x, bias = torch.randn(2, 3), torch.randn(2, 3)
    grad_out = torch.randn(2, 3)
    options = {"eps": EPS, "norm": "layer", "output_mask": [True] * 4}
    backward = torch.ops.retnet.gated_group_norm_backward
    results = backward(grad_out, x, None, None, bias, **options)
    assert torch.equal(results[3], grad_out)
    assert results[3].data_ptr() != grad_out.data_ptr()


@parametrize("leading", [(0,), (2, 0), (0, 3)], ids=str)
@norms
def test_empty(norm, leading, device):
    inputs = ask(norm_inputs(leading, dtype=torch.float32, device=device))
    out = gated_group_norm(**inputs, eps=EPS, norm=norm)
    assert out.shape == inputs["x"].shape
    result = grads((out,), inputs, use=(True,))
    assert all(result[name].shape == x.shape for name, x in inputs.items())
    assert not result["weight"].any() and not result["bias"].any()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    leading=st.lists(st.integers(1, 3), max_size=3),
    H=st.integers(1, 3),
    Dv=st.integers(1, 9),
    gate=st.booleans(),
    weight=st.sampled_from(["", "[Dv]", "[H, Dv]"]),
    bias=st.sampled_from(["", "[Dv]", "[H, Dv]"]),
    norm=st.sampled_from(NORMS),
    eps=st.floats(0.01, 10),
)
def test_any_shape(leading, H, Dv, gate, weight, bias, norm, eps):
    inputs = ask(norm_inputs(leading, H, Dv, gate=gate, weight=weight, bias=bias))
    out, reference = gated_group_norm(**inputs, eps=eps, norm=norm), exact(inputs)
    expected = gated_group_norm_by_definition(**reference, eps=eps, norm=norm)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    actual = grads((out,), inputs, use=(True,))
    expected = grads((expected,), reference, use=(True,))
    for name in inputs:  # absolute as well, because the gradients of the layer norm are 0 if Dv = 1
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@parametrize("name", ["x", "gate", "weight", "bias"])
def test_saved_tensor_changed_in_place_raises(name):
    inputs = ask(norm_inputs())
    hidden = {n: x * 1 for n, x in inputs.items()}
    out = gated_group_norm(**hidden, eps=EPS)
    with torch.no_grad():
        hidden[name].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_what_is_saved_are_the_inputs():
    inputs = ask(norm_inputs((300,), dtype=torch.bfloat16))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        gated_group_norm(**inputs, eps=EPS)
    assert {x.data_ptr() for x in saved} == {x.data_ptr() for x in inputs.values()}


@parametrize("name", ["x", "gate", "weight", "bias"])
def test_double_backward_raises(name):
    inputs = ask(norm_inputs())
    out = gated_group_norm(**inputs, eps=EPS)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[name], create_graph=True)
    message = "gated_group_norm_backward: double backward is not supported"
    with pytest.raises(RuntimeError, match=message):
        grad.sum().backward()
