# SPDX-License-Identifier: Apache-2.0
"""retention works with PyTorch: autograd, compile, autocast, strides, threads, processes."""

import math
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from retnet.ops import retention
from support.cases.ops import strided
from support.cases.retention import FORMS, NAMES, grads, make_inputs, require_grad, state_dtype

parametrize = pytest.mark.parametrize


@parametrize("form", FORMS)
@parametrize("packed", [False, True], ids=["batch", "packed"])
def test_gradcheck(packed, form):
    decays = [math.log1p(-(2.0**-5)), -0.4]
    B, N = (1, 3) if packed else (2, 2)
    inputs = make_inputs(B, 9, 2, 3, 2, log_decay=decays, num_states=N)
    inputs = require_grad(inputs)
    options = {"form": form, "chunk_size": 4}
    if packed:
        options["cu_seqlens"] = torch.tensor([0, 2, 2, 9], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda *x: retention(*x, **options), tuple(inputs.values()))


@parametrize("form", FORMS)
def test_opcheck(form, device):
    inputs = require_grad(
        make_inputs(1, 9, 2, 3, 2, dtype=torch.float32, num_states=2, device=device)
    )
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32, device=device)
    options = {"scale": 0.5, "form": form, "chunk_size": 4, "cu_seqlens": cu_seqlens}
    torch.library.opcheck(torch.ops.retnet.retention, tuple(inputs.values()), options)
    # No input aliases the outputs, even if no gradient is required.
    detached = tuple(x.detach() for x in inputs.values())
    torch.library.opcheck(torch.ops.retnet.retention, detached, options)


def backward_call(packed, form, undefined=()):
    """Returns positional arguments and options, except the mask."""
    N = 3 if packed else 1
    inputs = make_inputs(1, 9, 2, 3, 2, dtype=torch.float32, num_states=N)
    incoming = {"out": torch.randn(1, 9, 2, 2), "state": torch.randn(N, 2, 3, 2)}
    args = *(None if n in undefined else x for n, x in incoming.items()), *inputs.values()
    cu_seqlens = torch.tensor([0, 4, 4, 9], dtype=torch.int32) if packed else None
    return args, {"scale": None, "form": form, "chunk_size": 4, "cu_seqlens": cu_seqlens}


@parametrize("form", FORMS)
@parametrize("packed", [False, True], ids=["batch", "packed"])
@parametrize("mask", [[True] * 5, [False, True, False, True, False]], ids=["all", "some"])
def test_opcheck_backward(mask, packed, form):
    args, options = backward_call(packed, form)
    torch.library.opcheck(
        torch.ops.retnet.retention_backward, args, {**options, "output_mask": mask}
    )


@parametrize("form", FORMS)
@parametrize("undefined", [["state"], ["out"], ["out", "state"]], ids="-".join)
def test_opcheck_backward_without_a_gradient(undefined, form):
    args, options = backward_call(True, form, undefined)
    options["output_mask"] = [True] * 5
    torch.library.opcheck(torch.ops.retnet.retention_backward, args, options)
    results = torch.ops.retnet.retention_backward(*args, **options)
    assert any(x.any() for x in results) == (len(undefined) < 2)


@parametrize("form", FORMS)
@parametrize("asked", NAMES)
def test_subset_of_gradients(asked, form, device):
    every = require_grad(make_inputs(T=20, device=device))
    expected = grads(retention(**every, form=form), every)[asked]
    inputs = make_inputs(T=20, device=device)
    inputs[asked].requires_grad_()
    outputs = retention(**inputs, form=form)
    actual = grads(outputs, {asked: inputs[asked]})[asked]
    assert torch.equal(actual, expected)


@parametrize("form", FORMS)
def test_one_tensor_as_query_and_key(form, device):
    apart = require_grad(make_inputs(T=20, device=device))
    apart["k"] = apart["q"].detach().clone().requires_grad_()
    expected = grads(retention(**apart, form=form), apart)
    shared = require_grad(make_inputs(T=20, device=device))
    shared["k"] = shared["q"]
    outputs = retention(**shared, form=form)
    actual = grads(outputs, {"q": shared["q"]})["q"]
    torch.testing.assert_close(actual, expected["q"] + expected["k"], rtol=1e-12, atol=1e-12)


@parametrize("form", FORMS)
@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_and_offsets(dtype, form, device):
    inputs = make_inputs(T=20, dtype=dtype, device=device)
    views = {name: strided(x) if x.dim() > 1 else x for name, x in inputs.items()}
    # q is strided in the last dimension.
    transposed = {**views, "q": inputs["q"].mT.contiguous().mT}
    expected = retention(**inputs, form=form)
    for other in (views, transposed):
        for a, b in zip(retention(**other, form=form), expected, strict=True):
            assert torch.equal(a, b)


@parametrize("form", FORMS)
def test_expanded_inputs(form, device):
    """The stride over the batch and over heads is 0, and gradients are included."""
    inputs = make_inputs(B=1, T=20, device=device)
    inputs["k"] = inputs["k"][:, :, :1]
    leaves = require_grad(inputs)
    expanded = {name: x for name, x in leaves.items()}
    expanded["v"] = leaves["v"].expand(3, -1, -1, -1)
    expanded["k"] = leaves["k"].expand(3, -1, 4, -1)
    expanded["q"] = leaves["q"].expand(3, -1, -1, -1)
    expanded["initial_state"] = leaves["initial_state"].expand(3, -1, -1, -1)
    copies = {name: x.detach().contiguous().requires_grad_() for name, x in expanded.items()}
    outputs, expected = retention(**expanded, form=form), retention(**copies, form=form)
    for a, b in zip(outputs, expected, strict=True):
        assert torch.equal(a, b)
    actual, reference = grads(outputs, leaves), grads(expected, copies)
    for name in leaves:
        summed = reference[name]
        if name != "log_decay":
            summed = summed.sum_to_size(leaves[name].shape)
        torch.testing.assert_close(actual[name], summed, rtol=1e-12, atol=1e-12, msg=name)


@parametrize("form", FORMS)
def test_expanded_and_strided_incoming_gradients(form, device):
    inputs = require_grad(make_inputs(T=20, device=device))
    outputs = retention(**inputs, form=form)
    values = list(inputs.values())
    one = [torch.ones_like(x) for x in outputs]
    expanded = [torch.ones_like(x[:1, :1, :1, :1]).expand(x.shape) for x in outputs]
    strides = [strided(x) for x in one]
    expected = torch.autograd.grad(outputs, values, one, retain_graph=True)
    for incoming in (expanded, strides):
        actual = torch.autograd.grad(outputs, values, incoming, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_outputs_share_no_memory_with_inputs(dtype, device):
    inputs = make_inputs(dtype=dtype, device=device)
    pointers = {x.untyped_storage().data_ptr() for x in inputs.values()}
    for T in (0, 20):
        outputs = retention(**{n: x[:, :T] if n in "qkv" else x for n, x in inputs.items()})
        assert pointers.isdisjoint(x.untyped_storage().data_ptr() for x in outputs)


@parametrize("form", FORMS)
@parametrize("name", NAMES)
def test_saved_tensor_changed_in_place_raises(name, form, device):
    inputs = require_grad(make_inputs(T=20, device=device))
    hidden = {name: x * 1 for name, x in inputs.items()}
    out, _ = retention(**hidden, form=form)
    with torch.no_grad():
        hidden[name].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_double_backward_raises(device):
    inputs = require_grad(make_inputs(T=9, device=device))
    out, _ = retention(**inputs)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="retention_backward: double backward is not supported"):
        grad.sum().backward()


def test_functional_gradient_raises():
    inputs = make_inputs(T=9)
    rest = [inputs[name] for name in NAMES[1:]]
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda q: retention(q, *rest)[0].sum())(inputs["q"])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_a_loop():
    inputs = make_inputs(T=9)
    rest = [inputs[name] for name in NAMES[1:]]
    queries = torch.stack([inputs["q"], 2 * inputs["q"]])
    actual = torch.func.vmap(lambda q: retention(q, *rest)[0])(queries)
    expected = torch.stack([retention(q, *rest)[0] for q in queries])
    assert torch.equal(actual, expected)


@parametrize("form", FORMS)
def test_memory_between_forward_and_backward(form, device):
    """Only the inputs themselves are saved, and nothing per pair of tokens and no state per
    chunk.
    """
    inputs = require_grad(make_inputs(T=300, dtype=torch.bfloat16, device=device))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out, _ = retention(**inputs, form=form)
    assert out.requires_grad
    pointers = {x.data_ptr() for x in inputs.values()}
    assert {x.data_ptr() for x in saved} == pointers


@parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, device):
    inputs = make_inputs(T=20, dtype=torch.float32, device=device)
    with torch.autocast(device.type, dtype):
        out, state = retention(**require_grad(inputs))
    assert out.dtype == dtype and state.dtype == torch.float32
    cast = {name: x.to(dtype) if name in "qkv" else x for name, x in inputs.items()}
    assert torch.equal(out, retention(**cast)[0])
    double = make_inputs(T=20, device=device)
    with torch.autocast(device.type, dtype):
        assert retention(**double)[0].dtype == torch.float64  # as autocast does everywhere


def test_autocast_gradients_reach_float32_leaves(device):
    inputs = require_grad(make_inputs(T=20, dtype=torch.float32, device=device))
    with torch.autocast(device.type, torch.bfloat16):
        outputs = retention(**inputs)
    assert all(x.dtype == torch.float32 for x in grads(outputs, inputs).values())


@parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients(mode, device):
    inputs = require_grad(make_inputs(T=20, device=device))
    expected = retention(**inputs)
    with mode():
        outputs = retention(**inputs)
    assert not outputs[0].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@parametrize("form", FORMS)
def test_activation_checkpointing(form, device):
    inputs = require_grad(make_inputs(T=20, device=device))
    expected = grads(retention(**inputs, form=form), inputs)
    again = checkpoint(lambda *x: retention(*x, form=form), *inputs.values(), use_reentrant=False)
    actual = grads(again, inputs)
    assert all(torch.equal(actual[name], expected[name]) for name in inputs)


@parametrize("form", FORMS)
def test_compile_with_dynamic_length(form, device):
    """One graph serves every length, forward and backward, without a break or a recompilation."""
    torch._dynamo.reset()

    def step(q, k, v, log_decay, initial_state):
        out, state = retention(q * 2, k, v, log_decay, initial_state, form=form)
        return out.sin().sum() + state.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.config.error_on_recompile = True
    try:
        for T in (20, 33, 47):
            inputs = require_grad(make_inputs(T=T, dtype=torch.float32, device=device))
            expected = torch.autograd.grad(step(**inputs), list(inputs.values()))
            actual = torch.autograd.grad(compiled(**inputs), list(inputs.values()))
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, b)
    finally:
        torch._dynamo.config.error_on_recompile = False


@pytest.mark.not_poisoned
def test_compile_with_inductor():
    torch._dynamo.reset()
    compiled = torch.compile(lambda **x: retention(**x)[0].sin(), fullgraph=True)
    inputs = require_grad(make_inputs(T=20, dtype=torch.float32))
    del inputs["initial_state"]
    inputs["log_decay"].requires_grad_(False)  # a gradient that is not required is undefined
    leaves = {name: inputs[name] for name in "qkv"}
    actual = torch.autograd.grad(compiled(**inputs).sum(), list(leaves.values()))
    expected = torch.autograd.grad(retention(**inputs)[0].sin().sum(), list(leaves.values()))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


@parametrize("form", FORMS)
def test_meta(form):
    inputs = make_inputs(2, 20, 4, 8, 12, dtype=torch.bfloat16, device="meta")
    out, state = retention(**inputs, form=form)
    assert out.is_meta and out.shape == (2, 20, 4, 12) and out.dtype == torch.bfloat16
    assert state.shape == (2, 4, 8, 12) and state.dtype == state_dtype(torch.bfloat16)


def test_threads(device):
    inputs = require_grad(make_inputs(T=70, device=device))
    expected = grads(retention(**inputs), inputs)["q"]
    results = {}

    def work(n: int) -> None:
        mine = require_grad(inputs)
        results[n] = grads(retention(**mine), mine)["q"]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[n], expected) for n in range(4))


def run_python(code: str, **environment: str) -> str:
    """Returns the standard output of ``code`` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fork_after_import(device):
    """Parent and child both compute, because the import initialises nothing that a fork breaks."""
    code = f"""
import os, torch, retnet
pid = os.fork()
x = torch.ones(1, 5, 1, 2, device="{device}")
out, _ = retnet.ops.retention(x, x, x, torch.zeros(1, device="{device}"))
assert out.cpu().shape == x.shape
if pid:
    print(os.waitpid(pid, 0)[1])
"""
    assert run_python(code, OMP_NUM_THREADS="1").split() == ["0"]


def test_import_leaves_cuda_alone(device):
    """With or without a GPU, the import neither queries nor initialises CUDA."""
    code = """
import torch
def asked(*_): raise AssertionError("the import asks for CUDA")
torch.cuda._lazy_init = asked
import retnet, retnet.nn, retnet.cpp, retnet.cli
print(torch.cuda.is_initialized())
"""
    assert run_python(code).split() == ["False"]
