# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments of rotary, gated_group_norm and the two steps. Each error names op, argument,
requirement and actual value, and a step that raises does not change its state.
"""

import math

import pytest
import torch

from retnet import ops
from support.cases.ops import INT32, fused_inputs, norm_inputs, rotary_inputs, step_inputs

EPS = {"eps": 1e-5}
f64, f32, f16 = torch.float64, torch.float32, torch.float16
bf16, int64 = torch.bfloat16, torch.int64


def zeros(*shape, dtype=f32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


def ints(*values, dtype=INT32):
    return torch.tensor(values, dtype=dtype)


# id: (what is changed in valid float32 inputs, the message after the name of the op)
ROTARY = {
    "q_rank": ({"q": zeros(2, 8)}, "q must have shape [B, T, H, Dk] or [B, H, Dk], got [2, 8]"),
    "q_dtype": (
        {"q": zeros(2, 5, 3, 8, dtype=int64)},
        "q must be float32, float64, bfloat16 or float16, got int64",
    ),
    "q_odd": ({"q": zeros(2, 5, 3, 7)}, "q must have an even Dk >= 2, got [2, 5, 3, 7]"),
    "q_no_channel": ({"q": zeros(2, 5, 3, 0)}, "q must have an even Dk >= 2, got [2, 5, 3, 0]"),
    "k_shape": (
        {"k": zeros(2, 5, 1, 8)},
        "k must have q's shape [2, 5, 3, 8], got [2, 5, 1, 8]",
    ),
    "k_dtype": ({"k": zeros(2, 5, 3, 8, dtype=f16)}, "k must be float32 (like q), got float16"),
    "k_device": (
        {"k": zeros(2, 5, 3, 8, device="meta")},
        "k must be on q's device cpu, got meta",
    ),
    "positions_T": ({"positions": ints(0, 1)}, "positions must have shape [T] = [5], got [2]"),
    "positions_BT": (
        {"positions": zeros(1, 5, dtype=int64)},
        "positions must have shape [B, T] = [2, 5], got [1, 5]",
    ),
    "positions_rank": (
        {"positions": zeros(2, 5, 1, dtype=int64)},
        "positions must have shape [T] or [B, T], got [2, 5, 1]",
    ),
    "positions_of_a_step": (
        {"q": zeros(2, 3, 8), "k": zeros(2, 3, 8)},
        "positions must have shape [B] = [2], got [5]",
    ),
    "positions_dtype": ({"positions": zeros(5)}, "positions must be int32 or int64, got float32"),
    "positions_device": (
        {"positions": zeros(5, dtype=int64, device="meta")},
        "positions must be on q's device cpu, got meta",
    ),
    "frequencies_shape": (
        {"frequencies": zeros(8)},
        "frequencies must have shape [Dk / 2] = [4], got [8]",
    ),
    "frequencies_dtype": (
        {"frequencies": zeros(4, dtype=f64)},
        "frequencies must be float32 (whatever q's dtype), got float64",
    ),
    "frequencies_device": (
        {"frequencies": zeros(4, device="meta")},
        "frequencies must be on q's device cpu, got meta",
    ),
    "style": ({"style": "neox"}, 'style must be "interleaved" or "half", got "neox"'),
}
NORM = {
    "x_rank": ({"x": zeros(12)}, "x must have shape [..., H, Dv], got [12]"),
    "x_dtype": (
        {"x": zeros(2, 5, 3, 12, dtype=int64)},
        "x must be float32, float64, bfloat16 or float16, got int64",
    ),
    "x_no_channel": (
        {"x": zeros(2, 5, 3, 0), "gate": None},
        "x must have Dv >= 1, got [2, 5, 3, 0]",
    ),
    "gate_shape": (
        {"gate": zeros(2, 5, 3, 1)},
        "gate must have x's shape [2, 5, 3, 12], got [2, 5, 3, 1]",
    ),
    "gate_dtype": (
        {"gate": zeros(2, 5, 3, 12, dtype=f64)},
        "gate must be float32 (like x), got float",
    ),
    "gate_device": (
        {"gate": zeros(2, 5, 3, 12, device="meta")},
        "gate must be on x's device cpu, got meta",
    ),
    "weight_rank": (
        {"weight": zeros(1, 3, 12)},
        "weight must have shape [Dv] or [H, Dv], got [1, 3, 12]",
    ),
    "weight_V": ({"weight": zeros(3)}, "weight must have shape [Dv] = [12], got [3]"),
    "weight_HV": (
        {"weight": zeros(1, 12)},
        "weight must have shape [H, Dv] = [3, 12], got [1, 12]",
    ),
    "weight_dtype": (
        {"weight": zeros(12, dtype=bf16)},
        "weight must be float32 (like x) or float32 (the accumulation dtype), got bfloat16",
    ),
    "weight_device": (
        {"weight": zeros(12, device="meta")},
        "weight must be on x's device cpu, got meta",
    ),
    "bias_scalar": ({"bias": zeros()}, "bias must have shape [Dv] or [H, Dv], got []"),
    "bias_HV": ({"bias": zeros(12, 3)}, "bias must have shape [H, Dv] = [3, 12], got [12, 3]"),
    "bias_dtype_beside_half": (
        {"x": zeros(2, 5, 3, 12, dtype=f16), "gate": None, "bias": zeros(12, dtype=f64)},
        "bias must be float16 (like x) or float32 (the accumulation dtype), got float64",
    ),
    "bias_device": (
        {"bias": zeros(12, device="meta")},
        "bias must be on x's device cpu, got meta",
    ),
    "eps_negative": ({"eps": -1e-5}, "eps must be at least 0, got -1e-05"),
    "eps_nan": ({"eps": math.nan}, "eps must be at least 0, got nan"),
    "norm": ({"norm": "batch"}, 'norm must be "layer" or "rms", got "batch"'),
}
STEP = {
    "q_rank": ({"q": zeros(3, 1, 4, 8)}, "q must have shape [B, H, Dk], got [3, 1, 4, 8]"),
    "q_dtype": (
        {"q": zeros(3, 4, 8, dtype=INT32)},
        "q must be float32, float64, bfloat16 or float16, got int32",
    ),
    "q_no_channel": ({"q": zeros(3, 4, 0)}, "q must have Dk >= 1, got [3, 4, 0]"),
    "k_shape": (
        {"k": zeros(3, 4, 6)},
        "k must have shape [B, H, Dk] = [3, 4, 8], got [3, 4, 6]",
    ),
    "k_dtype": ({"k": zeros(3, 4, 8, dtype=bf16)}, "k must be float32 (like q), got bfloat16"),
    "k_device": ({"k": zeros(3, 4, 8, device="meta")}, "k must be on q's device cpu, got meta"),
    "v_rank": ({"v": zeros(3, 48)}, "v must have shape [B, H, Dv], got [3, 48]"),
    "v_heads": (
        {"v": zeros(3, 2, 12)},
        "v must have shape [B, H, Dv] = [3, 4, 12], got [3, 2, 12]",
    ),
    "v_no_channel": ({"v": zeros(3, 4, 0)}, "v must have Dv >= 1, got [3, 4, 0]"),
    "v_dtype": ({"v": zeros(3, 4, 12, dtype=f64)}, "v must be float32 (like q), got float64"),
    "v_device": ({"v": zeros(3, 4, 12, device="meta")}, "v must be on q's device cpu, got meta"),
    "log_decay_shape": ({"log_decay": zeros(3)}, "log_decay must have shape [H] = [4], got [3]"),
    "log_decay_dtype": (
        {"log_decay": zeros(4, dtype=f64)},
        "log_decay must be float32 (the state's dtype), got float64",
    ),
    "log_decay_device": (
        {"log_decay": zeros(4, device="meta")},
        "log_decay must be on q's device cpu, got meta",
    ),
    "log_decay_positive": (
        {"log_decay": torch.tensor([0.0, 0.25, -1.0, 0.0])},
        "log_decay must lie in [-inf, 0], got 0.25 in head 1",
    ),
    "log_decay_nan": (
        {"log_decay": torch.tensor([0.0, -1.0, -1.0, math.nan])},
        "log_decay must lie in [-inf, 0], got nan in head 3",
    ),
    "state_rank": (
        {"state": zeros(3, 32, 12)},
        "state must have shape [B, H, Dk, Dv], got [3, 32, 12]",
    ),
    "state_shape": (
        {"state": zeros(3, 4, 12, 8)},
        "state must have shape [B, H, Dk, Dv] = [3, 4, 8, 12], got [3, 4, 12, 8]",
    ),
    "state_rows": (
        {"state": zeros(7, 4, 8, 12)},
        "state must have shape [B, H, Dk, Dv] = [3, 4, 8, 12], got [7, 4, 8, 12]",
    ),
    "state_dtype": (
        {"state": zeros(3, 4, 8, 12, dtype=bf16)},
        "state must be float32 (the accumulation dtype), got bfloat16",
    ),
    "state_device": (
        {"state": zeros(3, 4, 8, 12, device="meta")},
        "state must be on q's device cpu, got meta",
    ),
    "slots_state_rank": (
        {"slots": ints(0, 1, 2), "state": zeros(7, 8, 12)},
        "state must have shape [S, H, Dk, Dv], got [7, 8, 12]",
    ),
    "slots_state_heads": (
        {"slots": ints(0, 1, 2), "state": zeros(7, 2, 8, 12)},
        "state must have shape [S, H, Dk, Dv] = [7, 4, 8, 12], got [7, 2, 8, 12]",
    ),
    "slots_shape": ({"slots": ints(0, 1)}, "slots must have shape [B] = [3], got [2]"),
    "slots_dtype": (
        {"slots": ints(0, 1, 2, dtype=int64)},
        "slots must be int32 (indices into the state), got int64",
    ),
    "slots_device": (
        {"slots": zeros(3, dtype=INT32, device="meta")},
        "slots must be on q's device cpu, got meta",
    ),
    "slots_range": ({"slots": ints(0, 3, 1)}, "slots must be below S = 3, got 3 in batch entry 1"),
    "slots_equal": (
        {"slots": ints(2, -1, 2)},
        "slots must be distinct, got 2 in batch entries 0 and 2",
    ),
}
FUSED = {
    "gate_shape": (
        {"gate": zeros(3, 4, 8)},
        "gate must have shape [B, H, Dv] = [3, 4, 12], got [3, 4, 8]",
    ),
    "gate_dtype": (
        {"gate": zeros(3, 4, 12, dtype=bf16)},
        "gate must be float32 (like q), got bfloat",
    ),
    "gate_device": (
        {"gate": zeros(3, 4, 12, device="meta")},
        "gate must be on q's device cpu, got meta",
    ),
    "odd": (
        {"q": zeros(3, 4, 7), "k": zeros(3, 4, 7), "state": zeros(3, 4, 7, 12)},
        "q must have an even Dk >= 2, got [3, 4, 7]",
    ),
    "frequencies_shape": ROTARY["frequencies_shape"],
    "frequencies_dtype": ROTARY["frequencies_dtype"],
    "frequencies_device": ROTARY["frequencies_device"],
    "style": ROTARY["style"],
    "positions": ({"positions": ints(1)}, "positions must have shape [B] = [3], got [1]"),
    "positions_dtype": ({"positions": zeros(3)}, "positions must be int32 or int64, got float32"),
    "positions_device": (
        {"positions": zeros(3, dtype=int64, device="meta")},
        "positions must be on q's device cpu, got meta",
    ),
    "weight_rank": (
        {"weight": zeros(1, 4, 12)},
        "weight must have shape [Dv] or [H, Dv], got [1, 4, 12]",
    ),
    "weight_V": ({"weight": zeros(4)}, "weight must have shape [Dv] = [12], got [4]"),
    "weight_dtype": (
        {"weight": zeros(4, 12, dtype=bf16)},
        "weight must be float32 (like v) or float32 (the accumulation dtype), got bfloat16",
    ),
    "weight_device": (
        {"weight": zeros(12, device="meta")},
        "weight must be on v's device cpu, got meta",
    ),
    "bias_HV": ({"bias": zeros(3, 12)}, "bias must have shape [H, Dv] = [4, 12], got [3, 12]"),
    "bias_device": (
        {"bias": zeros(4, 12, device="meta")},
        "bias must be on v's device cpu, got meta",
    ),
    "bias_dtype": (
        {"bias": zeros(12, dtype=f64)},
        "bias must be float32 (like v) or float32 (the accumulation dtype), got float64",
    ),
    "eps_negative": NORM["eps_negative"],
    "norm": NORM["norm"],
    **STEP,
}


def table(bad):
    return pytest.mark.parametrize(("change", "message"), bad.values(), ids=bad.keys())


def check(op, inputs, change, message):
    changed = {**inputs, **change}
    state = changed.get("state")
    before = None if state is None or state.is_meta else state.clone()
    with pytest.raises(RuntimeError) as error:
        getattr(ops, op)(**changed)
    assert f"{op}: {message}" in str(error.value)
    if before is not None:
        assert torch.equal(state, before) and state._version == 0


@table(ROTARY)
def test_rotary(change, message):
    check("rotary", rotary_inputs(dtype=f32), change, message)


@table(NORM)
def test_gated_group_norm(change, message):
    check("gated_group_norm", {**norm_inputs(dtype=f32), **EPS}, change, message)


@table(STEP)
def test_retention_step(change, message):
    check("retention_step", step_inputs(dtype=f32), change, message)


@table(FUSED)
def test_multi_scale_retention_step(change, message):
    check("multi_scale_retention_step", {**fused_inputs(dtype=f32), **EPS}, change, message)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [("gated_group_norm", norm_inputs()), ("multi_scale_retention_step", fused_inputs())],
)
def test_eps_has_no_default(op, inputs):
    with pytest.raises(TypeError, match="eps"):
        getattr(ops, op)(**inputs)


BACKWARD_ROTARY = {
    "q_shape": ((zeros(2, 4, 3, 8), None), "positions must have shape [T] = [4], got [5]"),
    "k_rank": (
        (None, zeros(8)),
        "grad_rotated_k must have shape [B, T, H, Dk] or [B, H, Dk], got [8]",
    ),
    "k_channels": (
        (None, zeros(2, 5, 3, 10)),
        "frequencies must have shape [Dk / 2] = [5], got [4]",
    ),
    "q_dtype": (
        (zeros(2, 5, 3, 8, dtype=int64), None),
        "grad_rotated_q must be float32, float64, bfloat16 or float16, got int64",
    ),
    "q_device": (
        (zeros(2, 5, 3, 8, device="meta"), None),
        "positions must be on grad_rotated_q's device meta, got cpu",
    ),
    "k_device": (
        (None, zeros(2, 5, 3, 8, device="meta")),
        "positions must be on grad_rotated_k's device meta, got cpu",
    ),
    "k_is_not_q_shape": (
        (zeros(2, 5, 3, 8), zeros(2, 5, 1, 8)),
        "grad_rotated_k must have grad_rotated_q's shape [2, 5, 3, 8], got [2, 5, 1, 8]",
    ),
    "k_is_not_q_dtype": (
        (zeros(2, 5, 3, 8), zeros(2, 5, 3, 8, dtype=f64)),
        "grad_rotated_k must be float32 (like grad_rotated_q), got float64",
    ),
}
BACKWARD_NORM = {
    "shape": (zeros(2, 5, 3), "grad_out must have x's shape [2, 5, 3, 12], got [2, 5, 3]"),
    "dtype": (zeros(2, 5, 3, 12, dtype=f64), "grad_out must be float32 (like x), got float64"),
    "device": (
        zeros(2, 5, 3, 12, device="meta"),
        "grad_out must be on x's device cpu, got meta",
    ),
}


@table(BACKWARD_ROTARY)
def test_rotary_backward(change, message):
    inputs = rotary_inputs(dtype=f32)
    rest = (inputs["positions"], inputs["frequencies"])
    with pytest.raises(RuntimeError) as error:
        torch.ops.retnet.rotary_backward(*change, *rest, style="half", output_mask=[True, True])
    assert f"rotary_backward: {message}" in str(error.value)


@table(BACKWARD_NORM)
def test_gated_group_norm_backward(change, message):
    options = {**EPS, "norm": "layer", "output_mask": [True] * 4}
    with pytest.raises(RuntimeError) as error:
        torch.ops.retnet.gated_group_norm_backward(
            change, *norm_inputs(dtype=f32).values(), **options
        )
    assert f"gated_group_norm_backward: {message}" in str(error.value)
