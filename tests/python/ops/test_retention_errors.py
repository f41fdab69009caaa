# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments of retention. Each error names op, argument, requirement and actual value."""

import math

import pytest
import torch

from retnet import ops
from retnet.ops import retention
from support.cases.retention import NAMES, make_inputs

INT32 = torch.int32
BAD = {
    "q_rank": ({"q": torch.zeros(2, 4, 8)}, "q must have shape [B, T, H, Dk], got [2, 4, 8]"),
    "q_dtype": (
        {"q": torch.zeros(2, 7, 4, 8, dtype=torch.int64)},
        "q must be float32, float64, bfloat16 or float16, got int64",
    ),
    "no_key_dimension": (
        {"q": torch.zeros(2, 7, 4, 0), "k": torch.zeros(2, 7, 4, 0)},
        "q must have Dk >= 1, got [2, 7, 4, 0]",
    ),
    "no_value_dimension": (
        {"v": torch.zeros(2, 7, 4, 0)},
        "v must have Dv >= 1, got [2, 7, 4, 0]",
    ),
    "k_shape": (
        {"k": torch.zeros(2, 7, 4, 6)},
        "k must have shape [B, T, H, Dk] = [2, 7, 4, 8], got [2, 7, 4, 6]",
    ),
    "k_rank": (
        {"k": torch.zeros(2, 7, 32)},
        "k must have shape [B, T, H, Dk] = [2, 7, 4, 8], got [2, 7, 32]",
    ),
    "k_heads": (
        {"k": torch.zeros(2, 7, 2, 8)},
        "k must have shape [B, T, H, Dk] = [2, 7, 4, 8], got [2, 7, 2, 8]",
    ),
    "v_rank": ({"v": torch.zeros(2, 7, 12)}, "v must have shape [B, T, H, Dv], got [2, 7, 12]"),
    "v_length": (
        {"v": torch.zeros(2, 6, 4, 12)},
        "v must have shape [B, T, H, Dv] = [2, 7, 4, 12], got [2, 6, 4, 12]",
    ),
    "k_dtype": (
        {"k": torch.zeros(2, 7, 4, 8, dtype=torch.bfloat16)},
        "k must be float32 (like q), got bfloat16",
    ),
    "v_dtype": (
        {"v": torch.zeros(2, 7, 4, 12, dtype=torch.float64)},
        "v must be float32 (like q), got float64",
    ),
    "k_device": (
        {"k": torch.zeros(2, 7, 4, 8, device="meta")},
        "k must be on q's device cpu, got meta",
    ),
    "v_device": (
        {"v": torch.zeros(2, 7, 4, 12, device="meta")},
        "v must be on q's device cpu, got meta",
    ),
    "log_decay_shape": (
        {"log_decay": torch.zeros(3)},
        "log_decay must have shape [H] = [4], got [3]",
    ),
    "log_decay_dtype": (
        {"log_decay": torch.zeros(4, dtype=torch.float64)},
        "log_decay must be float32 (the state's dtype), got float64",
    ),
    "log_decay_device": (
        {"log_decay": torch.zeros(4, device="meta")},
        "log_decay must be on q's device cpu, got meta",
    ),
    "log_decay_positive": (
        {"log_decay": torch.tensor([0.0, -1.0, 0.5, 0.0])},
        "log_decay must lie in [-inf, 0], got 0.5 in head 2",
    ),
    "log_decay_nan": (
        {"log_decay": torch.tensor([0.0, math.nan, 0.0, 0.0])},
        "log_decay must lie in [-inf, 0], got nan in head 1",
    ),
    "state_rank": (
        {"initial_state": torch.zeros(4, 8, 12)},
        "initial_state must have shape [N, H, Dk, Dv] = [2, 4, 8, 12], got [4, 8, 12]",
    ),
    "state_shape": (
        {"initial_state": torch.zeros(2, 4, 12, 8)},
        "initial_state must have shape [N, H, Dk, Dv] = [2, 4, 8, 12], got [2, 4, 12, 8]",
    ),
    "state_dtype": (
        {"initial_state": torch.zeros(2, 4, 8, 12, dtype=torch.float16)},
        "initial_state must be float32 (the state's dtype), got float16",
    ),
    "state_device": (
        {"initial_state": torch.zeros(2, 4, 8, 12, device="meta")},
        "initial_state must be on q's device cpu, got meta",
    ),
    "form": (
        {"form": "chunked"},
        'form must be "chunkwise", "parallel" or "recurrent", got "chunked"',
    ),
    "chunk_size_zero": ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    "chunk_size_negative": ({"chunk_size": -64}, "chunk_size must be at least 1, got -64"),
    "packed_batch": (
        {"cu_seqlens": torch.tensor([0, 7], dtype=INT32)},
        "q must have B = 1 when cu_seqlens is given, got [2, 7, 4, 8]",
    ),
}
BAD_PACKED = {
    "rank": (torch.zeros(2, 2, dtype=INT32), "must have shape [N + 1], got [2, 2]"),
    "empty": (torch.zeros(0, dtype=INT32), "must have at least one entry, got [0]"),
    "dtype": (torch.tensor([0, 7]), "must be int32 (as in FlashAttention), got int64"),
    "device": (torch.zeros(2, dtype=INT32, device="meta"), "must be on q's device cpu, got meta"),
    "start": (torch.tensor([1, 7], dtype=INT32), "must start at 0, got 1"),
    "end": (torch.tensor([0, 6], dtype=INT32), "must end at T = 7, got 6"),
    "beyond": (torch.tensor([0, 8], dtype=INT32), "must end at T = 7, got 8"),
    "falls": (
        torch.tensor([0, 5, 3, 7], dtype=INT32),
        "must be non-decreasing, got 5 before 3 at index 2",
    ),
}


@pytest.mark.parametrize("op", ["retention", "retention_plan"])
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_argument(change, message, op):
    inputs = {**make_inputs(T=7, dtype=torch.float32), **change}
    with pytest.raises(RuntimeError) as error:
        getattr(ops, op)(**inputs)
    assert f"{op}: {message}" in str(error.value)


bad_packed = pytest.mark.parametrize(
    ("cu_seqlens", "message"), BAD_PACKED.values(), ids=BAD_PACKED.keys()
)


@pytest.mark.parametrize("op", ["retention", "retention_plan"])
@bad_packed
def test_bad_cu_seqlens(cu_seqlens, message, op):
    inputs = make_inputs(B=1, T=7, dtype=torch.float32)
    del inputs["initial_state"]
    with pytest.raises(RuntimeError) as error:
        getattr(ops, op)(**inputs, cu_seqlens=cu_seqlens)
    assert f"{op}: cu_seqlens {message}" in str(error.value)


@bad_packed
def test_bad_cu_seqlens_of_the_backward(cu_seqlens, message):
    inputs = make_inputs(B=1, T=7, dtype=torch.float32)
    options = {"scale": None, "form": "chunkwise", "chunk_size": None, "cu_seqlens": cu_seqlens}
    with pytest.raises(RuntimeError) as error:
        torch.ops.retnet.retention_backward(
            inputs["v"],
            None,
            *[inputs[n] for n in NAMES[:4]],
            None,
            **options,
            output_mask=[True] * 5,
        )
    assert f"retention_backward: cu_seqlens {message}" in str(error.value)


# grad_out, grad_state, what is changed in valid inputs, the message
BAD_GRADIENTS = {
    "out_shape": (
        torch.zeros(2, 7, 4, 8),
        None,
        {},
        "grad_out must have shape [B, T, H, Dv] = [2, 7, 4, 12], got [2, 7, 4, 8]",
    ),
    "out_dtype": (
        torch.zeros(2, 7, 4, 12).half(),
        None,
        {},
        "grad_out must be float32 (like q), got float16",
    ),
    "out_device": (
        torch.zeros(2, 7, 4, 12, device="meta"),
        None,
        {},
        "grad_out must be on q's device cpu, got meta",
    ),
    "state_shape": (
        None,
        torch.zeros(2, 4, 8, 8),
        {},
        "grad_state must have shape [N, H, Dk, Dv] = [2, 4, 8, 12], got [2, 4, 8, 8]",
    ),
    "state_dtype": (
        None,
        torch.zeros(2, 4, 8, 12).double(),
        {},
        "grad_state must be float32 (the state's dtype), got float64",
    ),
    "out_rank": (
        torch.zeros(2, 7, 48),
        None,
        {},
        "grad_out must have shape [B, T, H, Dv] = [2, 7, 4, 12], got [2, 7, 48]",
    ),
    "state_device": (
        None,
        torch.zeros(2, 4, 8, 12, device="meta"),
        {},
        "grad_state must be on q's device cpu, got meta",
    ),
    "input": (
        torch.zeros(2, 7, 4, 12),
        None,
        {"k": torch.zeros(2, 7, 4, 6)},
        "k must have shape [B, T, H, Dk] = [2, 7, 4, 8], got [2, 7, 4, 6]",
    ),
}


@pytest.mark.parametrize(
    ("grad_out", "grad_state", "change", "message"),
    BAD_GRADIENTS.values(),
    ids=BAD_GRADIENTS.keys(),
)
def test_bad_gradient(grad_out, grad_state, change, message):
    inputs = {**make_inputs(T=7, dtype=torch.float32), **change}
    options = {"scale": None, "form": "chunkwise", "chunk_size": None, "cu_seqlens": None}
    with pytest.raises(RuntimeError) as error:
        torch.ops.retnet.retention_backward(
            grad_out, grad_state, *inputs.values(), **options, output_mask=[True] * 5
        )
    assert f"retention_backward: {message}" in str(error.value)


@pytest.mark.parametrize("value", [0.5, math.nan])
def test_bad_log_decay_on_a_device_is_nan_in_its_head(value, device):
    if device.type == "cpu":
        pytest.skip("the CPU raises")
    inputs = make_inputs(T=7, dtype=torch.float32, device=device)
    inputs["log_decay"][1] = value
    out, state = retention(**inputs)
    assert out[:, :, 1].isnan().all() and state[:, 1].isnan().all()
    assert torch.isfinite(out[:, :, [0, 2, 3]]).all()
