# SPDX-License-Identifier: Apache-2.0
"""linear agrees with its definition on every instruction set and with oneDNN, and works with
PyTorch.
"""

import platform
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from retnet.ops import linear
from support.cases.ops import BF16, by_onednn, normal, strided
from support.tolerances import assert_close_to_reference

parametrize = pytest.mark.parametrize


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
    """A row also has the same bits alone and beside others."""
    if path == "emulated" and n_in * n_out > 1e7:
        pytest.skip("the arithmetic of avx512_bf16, slowly: 50,001 rows of 7 are enough")
    x, weight = normal(4, n_in), normal(n_out, n_in, seed=1)
    offset = normal(n_out, seed=2) if bias else None
    four = check(x, weight, offset)
    for rows in (1, 2, 3):
        assert torch.equal(check(x[:rows], weight, offset), four[:rows])
    assert torch.equal(linear(x[2], weight, offset), four[2])


def test_strides(path):
    """x and bias may have any strides, and the rows of weight too. A transposed weight uses torch's
    linear.
    """
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
    """Sums are wider than bfloat16, and a value that is not finite affects only its own output."""
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
    """The kernel needs a valid instruction set, and torch's linear does not read the variable."""
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


# Integration of both kernels with PyTorch, and the gradients of the oneDNN kernel
# --------------------------------------------------------------------------------------------------


def many(rows: tuple[int, ...] = (2, 64), n_in: int = 256, n_out: int = 300) -> list[Tensor]:
    """Returns x, weight and bias of at least as many numbers as oneDNN takes."""
    shapes = ((*rows, n_in), (n_out, n_in), (n_out,))
    return [normal(*s, dtype=torch.float32, seed=i) for i, s in enumerate(shapes)]


@parametrize("bias", [True, False], ids=["bias", "plain"])
@parametrize("layout", ["dense", "strided", "transposed", "expanded", "overlapping"])
def test_onednn_against_float64(layout, bias, onednn):
    inputs = many((3, 47))[: 2 + bias]
    if layout == "strided":
        inputs = [strided(t) for t in inputs]
    elif layout == "transposed":
        inputs = [t.mT.contiguous().mT if t.dim() > 1 else t for t in inputs]
    elif layout == "expanded":
        inputs[0] = inputs[0][:1].expand(3, 47, 256)
    elif layout == "overlapping":  # overlapping rows, like the frames of a signal
        inputs[:2] = [
            t.flatten()[: 30 * t.numel() // 256 + 256].unfold(0, 256, 30) for t in inputs[:2]
        ]
        inputs[0], inputs[1] = inputs[0][:141].unflatten(0, (3, 47)), inputs[1][:300]
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
    # oneDNN computes the product and the gradient of x. The bits are those of oneDNN on the same
    # operands.
    if layout == "dense" and not bias:
        x, weight = (t.detach() for t in inputs)
        product = torch.ops.mkldnn._linear_pointwise
        assert torch.equal(out, product(x, weight, None, "none", [], ""))
        assert torch.equal(actual[0], product(incoming, weight.T, None, "none", [], ""))


def test_onednn_by_the_cpu(monkeypatch):
    """oneDNN is used if MKL has no AVX-512, for the product and the gradient of x."""
    monkeypatch.delenv("RETNET_CPU_LINEAR", raising=False)
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        pytest.skip("this system does not tell its CPU by a file")
    is_one = "AuthenticAMD" in cpu and "avx512f" in cpu and platform.machine() == "x86_64"
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    x, weight, bias = (t.requires_grad_() for t in many((128,)))
    out = linear(x, weight, bias)
    assert by_onednn(out) == (is_one and libraries)
    (grad,) = torch.autograd.grad(out, weight, out.detach())
    assert torch.equal(grad, out.detach().T.mm(x.detach()))


@parametrize("asked", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_onednn_keeps_and_computes_what_is_asked(asked, onednn):
    """x is kept only for the gradient of weight, and weight only for that of x."""
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


def test_onednn_off(onednn, monkeypatch):
    """The environment turns it off, and so does torch's own switch."""
    x, weight, bias = many()
    weight.requires_grad_()
    monkeypatch.setenv("RETNET_CPU_LINEAR", "1")
    with torch.backends.mkldnn.flags(enabled=False):
        assert not by_onednn(linear(x, weight, bias))
    monkeypatch.setenv("RETNET_CPU_LINEAR", "0")
    out = linear(x, weight, bias)
    assert not by_onednn(out) and torch.equal(out, F.linear(x, weight, bias))
    monkeypatch.setenv("RETNET_CPU_LINEAR", "off")
    with pytest.raises(ValueError, match="RETNET_CPU_LINEAR must be 0 or 1, got off"):
        linear(x, weight, bias)


def test_other_derivatives_are_torchs(onednn):
    """These are forward mode and the transforms of torch.func."""
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
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning of vmap about a loop in place of a rule
        together = torch.vmap(linear, (0, None, None))(x, *inputs[1:])
        grad = torch.vmap(torch.func.grad(lambda x: linear(x, *inputs[1:]).sum()))(x)
    torch.testing.assert_close(together, F.linear(x, *inputs[1:]))
    torch.testing.assert_close(grad, torch.ones(*x.shape[:-1], 300) @ inputs[1])


def test_batched_gradients(onednn):
    inputs = [t.requires_grad_() for t in many()]
    incoming = normal(3, 2, 64, 300, dtype=torch.float32)
    out, expected = linear(*inputs), F.linear(*inputs)
    assert by_onednn(out)
    for mine, its in zip(
        torch.autograd.grad(out, inputs, incoming, is_grads_batched=True),
        torch.autograd.grad(expected, inputs, incoming, is_grads_batched=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


def test_checkpointed_and_without_gradients(onednn):
    inputs = [t.requires_grad_() for t in many()]
    out = linear(*inputs)
    expected = torch.autograd.grad(out.square().sum(), inputs)
    again = checkpoint(lambda *x: linear(*x).square().sum(), *inputs, use_reentrant=False)
    for mine, its in zip(torch.autograd.grad(again, inputs), expected, strict=True):
        assert torch.equal(mine, its)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(linear(*inputs), out)


def test_flops_are_counted(onednn):
    """The count is that of torch's linear, with all gradients."""
    counts = []
    for call in (linear, F.linear):
        inputs = [t.requires_grad_() for t in many()]
        with FlopCounterMode(display=False) as counter:
            call(*inputs).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 128 * 256 * 300


@parametrize("rows", [2, 128])
@parametrize("bias", [True, False], ids=["bias", "plain"])
@parametrize("dtype", [BF16, torch.float32], ids=str)
def test_opcheck(dtype, bias, rows, onednn, device):
    # On Arm, torch's product rounds the sum over each block of channels to bfloat16.
    n_in = 64 if dtype == BF16 else 256
    inputs = [t.to(device, dtype) for t in many((rows,), n_in)[: 2 + bias]]
    # If shapes are unknown, torch computes the product, and its sums have another order.
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
