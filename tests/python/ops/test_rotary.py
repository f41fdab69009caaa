# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of rotary agree with the float64 oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retnet.ops import rotary
from support.cases.ops import (
    STYLES,
    ask,
    asking,
    rotary_inputs,
    strided,
)
from support.cases.retention import DTYPES, grads
from support.checks.rotary import check

parametrize = pytest.mark.parametrize
LAYOUTS = {
    "positions[T]": {},
    "positions[B,T]": {"batch_positions": True},
    "step": {"T": None},
}
layouts = parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
styles = parametrize("style", STYLES)


@styles
@parametrize("dtype", DTYPES, ids=str)
@layouts
def test_against_the_definition(layout, dtype, style, device):
    check(rotary_inputs(**layout, dtype=dtype, device=device), style)


@styles
@layouts
def test_gradcheck(layout, style):
    inputs = ask(rotary_inputs(Dk=4, **layout))
    rest = (inputs["positions"], inputs["frequencies"])
    assert torch.autograd.gradcheck(
        lambda q, k: rotary(q, k, *rest, style=style), (inputs["q"], inputs["k"])
    )


@styles
@parametrize("dtype", DTYPES, ids=str)
def test_far_positions(dtype, style, device):
    """Position 10^6 is as exact as position 1. A float32 angle would have an error of up to
    0.06.
    """
    inputs = rotary_inputs(1, 4, 1, 64, dtype=dtype, device=device)
    inputs["positions"] = torch.tensor([1, 999_999, 1_000_000, 2**31 - 1], device=device)
    check(inputs, style)


@styles
def test_products_depend_on_the_difference_of_positions(style, device):
    inputs = rotary_inputs(1, 6, 2, 8, device=device)
    products = []
    for shift in (0, 1000):
        moved = {**inputs, "positions": inputs["positions"] + shift}
        q, k = rotary(**moved, style=style)
        products.append(torch.einsum("bthd,bshd->bhts", q, k))
    torch.testing.assert_close(products[0], products[1], rtol=1e-9, atol=1e-9)
    plain = torch.einsum("bthd,bshd->bhts", inputs["q"], inputs["k"])
    assert not torch.allclose(products[0], plain)


@styles
def test_position_zero_changes_nothing(style, device):
    inputs = rotary_inputs(dtype=torch.bfloat16, device=device)
    inputs["positions"].zero_()
    outputs = rotary(**inputs, style=style)
    assert torch.equal(outputs[0], inputs["q"]) and torch.equal(outputs[1], inputs["k"])


def test_int32_positions_are_int64_positions(device):
    inputs = rotary_inputs(device=device)
    expected = rotary(**inputs)
    inputs["positions"] = inputs["positions"].int()
    assert all(torch.equal(a, b) for a, b in zip(rotary(**inputs), expected, strict=True))


@styles
def test_one_tensor_as_query_and_key(style):
    apart = ask(rotary_inputs())
    apart["k"] = apart["q"].detach().clone().requires_grad_()
    expected = grads(rotary(**apart, style=style), asking(apart))
    shared = ask(rotary_inputs(), "q")
    shared["k"] = shared["q"]
    outputs = rotary(**shared, style=style)
    assert outputs[0].data_ptr() != outputs[1].data_ptr()
    actual = grads(outputs, {"q": shared["q"]})["q"]
    torch.testing.assert_close(actual, expected["q"] + expected["k"], rtol=1e-14, atol=1e-14)


@parametrize("asked", ["q", "k"])
def test_subset_of_gradients(asked, device):
    every = ask(rotary_inputs(device=device))
    expected = grads(rotary(**every), asking(every))[asked]
    inputs = ask(rotary_inputs(device=device), asked)
    assert torch.equal(grads(rotary(**inputs), asking(inputs))[asked], expected)


@parametrize("used", [0, 1], ids=["q_only", "k_only"])
def test_one_undefined_incoming_gradient(used):
    inputs = ask(rotary_inputs())
    expected = grads(rotary(**inputs), asking(inputs))
    outputs = rotary(**inputs)
    incoming = torch.Generator().manual_seed(1)
    values = [torch.randint(-128, 129, x.shape, generator=incoming) / 64 for x in outputs]
    actual = torch.autograd.grad(
        outputs[used], [inputs["q"], inputs["k"]], values[used].double(), allow_unused=True
    )
    assert torch.equal(actual[used], expected["qk"[used]])
    assert actual[1 - used] is None


@styles
def test_expanded_and_strided_incoming_gradients(style, device):
    inputs = ask(rotary_inputs(dtype=torch.bfloat16, device=device))
    outputs, leaves = rotary(**inputs, style=style), list(asking(inputs).values())
    ones = [torch.ones_like(x) for x in outputs]
    expected = torch.autograd.grad(outputs, leaves, ones, retain_graph=True)
    expanded = [x[:1, :1, :1, :1].expand(x.shape) for x in ones]
    for incoming in (expanded, [strided(x) for x in ones]):
        actual = torch.autograd.grad(outputs, leaves, incoming, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_backward_without_any_gradient_is_undefined():
    inputs = rotary_inputs()
    rest = (inputs["positions"], inputs["frequencies"])
    options = {"style": "half", "output_mask": [True, True]}
    assert torch.ops.retnet.rotary_backward(None, None, *rest, **options) == (None, None)


@parametrize("B", [0, 2])
@parametrize("T", [0, 3, None], ids=["no_token", "tokens", "step"])
def test_empty(T, B, device):
    inputs = ask(rotary_inputs(B, T, device=device))
    outputs = rotary(**inputs)
    assert all(x.shape == inputs["q"].shape for x in outputs)
    assert all(g.shape == inputs["q"].shape for g in grads(outputs, asking(inputs)).values())


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    B=st.integers(1, 3),
    T=st.one_of(st.none(), st.integers(1, 7)),
    H=st.integers(1, 3),
    pairs=st.integers(1, 9),
    style=st.sampled_from(STYLES),
    batch_positions=st.booleans(),
    start=st.integers(-(2**40), 2**40),
)
def test_any_shape_and_position(B, T, H, pairs, style, batch_positions, start):
    inputs = rotary_inputs(B, T, H, 2 * pairs, batch_positions=batch_positions)
    inputs["positions"] += start
    check(inputs, style)


def test_frequencies_that_require_grad_raise():
    inputs = rotary_inputs()
    expected = rotary(**inputs)
    inputs["frequencies"].requires_grad_()
    message = "rotary: frequencies must not require grad while grad mode is on .*, got requires_gr"
    with pytest.raises(RuntimeError, match=message):
        rotary(**inputs)
    with torch.no_grad():
        assert torch.equal(rotary(**inputs)[0], expected[0])


@parametrize("name", ["positions", "frequencies"])
def test_saved_tensor_changed_in_place_raises(name):
    inputs = ask(rotary_inputs(), "q")
    rotated, _ = rotary(**inputs)
    inputs[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rotated.sum().backward()


def test_nothing_of_the_size_of_the_tokens_is_saved():
    inputs = ask(rotary_inputs(T=300))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        rotary(**inputs)
    assert {x.data_ptr() for x in saved} == {
        inputs["positions"].data_ptr(),
        inputs["frequencies"].data_ptr(),
    }


def test_double_backward_raises():
    inputs = ask(rotary_inputs())
    rotated, _ = rotary(**inputs)
    (grad,) = torch.autograd.grad(rotated.square().sum(), inputs["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="rotary_backward: double backward is not supported"):
        grad.sum().backward()
