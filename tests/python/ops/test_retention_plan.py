# SPDX-License-Identifier: Apache-2.0
"""retention_plan says what a call runs. test_retention_errors.py tests that wrong arguments raise
as in retention, and test_retention.py that the results are right.
"""

import pytest
import torch
from torch import Tensor

from retnet.ops import RetentionPlan, retention_plan
from support.cases.ops import strided
from support.cases.retention import FORMS, make_inputs

parametrize = pytest.mark.parametrize
HALF = [torch.bfloat16, torch.float16]


def plan_of(*shape: int, device="cpu", dtype=torch.bfloat16, **options) -> RetentionPlan:
    return retention_plan(**make_inputs(*shape, dtype=dtype, device=device), **options)


@parametrize("form", FORMS)
@parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
def test_no_kernel_for_meta(dtype, form):
    plan = plan_of(2, 20, 4, 8, 12, device="meta", dtype=dtype, form=form)
    reason = "this build has no kernel for meta"
    assert plan == ("composite", reason, 0, 0, 0, 0, 0, 0, reason)
    assert plan.implementation == "composite" and plan.reason.startswith("this build has no kernel")


@parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "the kernel supports only float32, bfloat16 and float16"),
        ({"form": "parallel"}, 'the kernel supports only form="chunkwise"'),
        ({"form": "recurrent"}, 'the kernel supports only form="chunkwise"'),
        ({"chunk_size": 32}, "the kernel supports only chunk_size=64"),
    ],
    ids=str,
)
def test_unsupported_on_the_cpu(change, reason):
    plan = plan_of(2, 20, 4, 8, 12, **change)
    assert plan == ("composite", reason, 0, 0, 0, 0, 0, 0, reason)


@parametrize("chunk_size", [None, 64])
@parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_kernel_on_the_cpu(dtype, chunk_size, monkeypatch):
    monkeypatch.setenv("RETNET_CPU", "portable")
    plan = plan_of(2, 20, 4, 8, 12, dtype=dtype, chunk_size=chunk_size)
    assert plan == ("cpu_portable", "", 8, 12, 64, 0, 2, 0, "")


def test_packed():
    inputs = make_inputs(1, 20, dtype=torch.bfloat16, num_states=2)
    inputs["q"] = inputs["q"].mT.contiguous().mT
    cu_seqlens = torch.tensor([0, 5, 20], dtype=torch.int32)
    plan = retention_plan(**inputs, cu_seqlens=cu_seqlens)
    assert plan.implementation.startswith("cpu_") and (plan.segments, plan.copies) == (2, 1)


# threads, B, H, Dv, T: slice, segment_length, segments
CUTS = {
    (2, 1, 2, 512, 8192): (512, 0, 1),
    (2, 1, 1, 512, 8192): (256, 0, 1),
    (2, 1, 3, 512, 8192): (256, 0, 1),
    (2, 1, 4, 512, 8192): (512, 0, 1),
    (3, 1, 2, 432, 100): (192, 0, 1),
    (8, 1, 1, 128, 8192): (64, 2048, 4),
    (8, 2, 1, 64, 1500): (64, 512, 6),
    (8, 1, 1, 64, 500): (64, 0, 1),
}


@parametrize(("call", "cut"), CUTS.items(), ids=str)
def test_cut_on_the_cpu(call, cut, threads):
    """If whole heads leave threads idle, the columns are cut into slices, and then the tokens into
    segments.
    """
    threads(call[0])
    _, B, H, Dv, T = call
    plan = plan_of(B, T, H, 8, Dv)
    assert (plan.slice, plan.segment_length, plan.segments) == cut


@pytest.mark.usefixtures("strictly_deterministic")
def test_no_segments_in_the_strict_mode_on_the_cpu(threads):
    threads(8)
    plan = plan_of(1, 8192, 1, 8, 128)
    assert (plan.slice, plan.segment_length, plan.segments) == (64, 0, 1)


# Dk, Dv, chunk_size: inner, slice, chunk
TILES = {
    (64, 64, None): (64, 64, 64),
    (4, 12, None): (64, 64, 64),
    (64, 68, None): (64, 128, 64),
    (64, 128, 64): (64, 128, 64),
    (68, 4, None): (128, 128, 64),
    (128, 256, None): (128, 128, 64),
    (256, 512, None): (256, 128, 64),
    (132, 260, 32): (256, 128, 32),
}


@parametrize("dtype", HALF, ids=str)
@parametrize(("call", "tile"), TILES.items(), ids=str)
def test_tile(call, tile, dtype, gpu):
    Dk, Dv, chunk_size = call
    plan = plan_of(2, 20, 4, Dk, Dv, device=gpu, dtype=dtype, chunk_size=chunk_size)
    inner, width, chunk = tile
    needed = chunk * (2 * (3 * inner + 2 * width + chunk) + 8)
    if needed > torch.cuda.get_device_properties(gpu).shared_memory_per_block_optin:
        chunk = 32
    assert plan[:-1] == ("kernel", "", inner, width, chunk, 0, 2, 0)


@parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float32}, "the kernel supports only bfloat16 and float16"),
        ({"dtype": torch.float64}, "the kernel supports only bfloat16 and float16"),
        ({"form": "parallel"}, 'the kernel supports only form="chunkwise"'),
        ({"form": "recurrent"}, 'the kernel supports only form="chunkwise"'),
        ({"Dk": 260}, "Dk must be at most 256 and Dv at most 512"),
        ({"Dv": 516}, "Dk must be at most 256 and Dv at most 512"),
        ({"Dk": 6}, "Dk and Dv must be multiples of 4"),
        ({"chunk_size": 48}, "no tile has this chunk_size"),
    ],
    ids=str,
)
def test_unsupported_reason(change, reason, gpu):
    options = {"Dk": 64, "Dv": 64, **change}
    plan = plan_of(2, 20, 4, options.pop("Dk"), options.pop("Dv"), device=gpu, **options)
    assert plan == ("composite", reason, 0, 0, 0, 0, 0, 0, reason)


# Dv, and the shared memory that a block needs for the gradients of q and k
@parametrize(("Dv", "needed"), [(256, 0), (260, 121088), (512, 121088)])
def test_backward(Dv, needed, gpu):
    inputs = make_inputs(2, 20, 4, 256, Dv, dtype=torch.bfloat16, device=gpu)
    fits = torch.cuda.get_device_properties(gpu).shared_memory_per_block_optin >= needed
    for asked in (False, True):
        inputs["log_decay"].requires_grad_(asked)
        assert (retention_plan(**inputs).backward_reason == "") == fits


def test_too_many_blocks_for_the_gradient_of_log_decay(gpu):
    """Its slices are half as wide as those of the forward pass. Without tokens nothing is
    allocated.
    """
    q = torch.empty(2**20, 0, 256, 256, dtype=torch.bfloat16, device=gpu)
    log_decay = torch.full((256,), -0.1, device=gpu)
    call = (q, q, torch.cat([q, q], -1), log_decay)
    assert retention_plan(*call)[::8] == ("kernel", "")
    log_decay.requires_grad_()
    reason = "the gradient of log_decay would need more than 2^31 - 1 blocks"
    assert retention_plan(*call)[::8] == ("kernel", reason)


def odd_offset(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


@parametrize(
    ("change", "copies"),
    [
        ({}, 0),
        ({"q": lambda x: x.mT.contiguous().mT}, 1),
        ({"q": odd_offset}, 1),
        ({"k": odd_offset, "v": strided}, 2),
        ({"q": strided, "k": strided, "v": strided}, 3),
        ({"q": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]]}, 0),
    ],
    ids=["none", "inner_stride", "odd_offset", "two", "odd_strides", "gaps"],
)
def test_copies(change, copies, gpu):
    inputs = make_inputs(2, 20, 4, 64, 64, dtype=torch.bfloat16, device=gpu)
    inputs |= {name: view(inputs[name]) for name, view in change.items()}
    assert retention_plan(**inputs).copies == copies


def test_copies_nothing(gpu):
    inputs = make_inputs(1, 20, 4, 64, 64, dtype=torch.bfloat16, device=gpu, num_states=2)
    inputs = {name: strided(x) for name, x in inputs.items()}
    inputs["cu_seqlens"] = torch.tensor([0, 9, 5, 9, 20], dtype=torch.int32, device=gpu)[::2]
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    assert retention_plan(**inputs).copies == 3
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_segments(gpu):
    """If the device has many multiprocessors to fill, a long sequence with few heads is cut."""
    if torch.cuda.get_device_properties(gpu).multi_processor_count < 16:
        pytest.skip("a GPU of few multiprocessors")
    plan = plan_of(1, 8192, 1, 64, 64, device=gpu)
    assert (plan.segment_length, plan.segments) == (512, 16)
    plan = plan_of(64, 1024, 8, 64, 64, device=gpu)
    assert (plan.segment_length, plan.segments) == (0, 64)


@pytest.mark.usefixtures("strictly_deterministic")
@parametrize(("T", "length", "segments"), [(8192, 2048, 4), (2048, 0, 1), (2049, 2048, 2)])
def test_deterministic_segments(T, length, segments, gpu):
    for B in (1, 3):
        plan = plan_of(B, T, 1, 64, 64, device=gpu)
        assert (plan.segment_length, plan.segments) == (length, B * segments)
