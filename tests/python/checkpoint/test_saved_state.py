# SPDX-License-Identifier: Apache-2.0
"""Saved decoding states: what comes back and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from retnet import RetNetState
from support.cases.checkpoint import names, truncate
from support.cases.nn import make_config, make_model, random_ids


def test_state_round_trip(tmp_path, device):
    model = make_model(torch.float32).to(device)
    ids = random_ids(2, 12).to(device)
    whole = model(ids).logits[:, 8:]
    model(ids[:, :8]).state.detach().save(tmp_path / "state")
    state = RetNetState.load(tmp_path / "state", device)
    (tmp_path / "state").unlink()
    assert state.positions.tolist() == [8, 8] and state.retention.device.type == device.type
    torch.testing.assert_close(model(ids[:, 8:], state=state).logits, whole)


@pytest.mark.parametrize(
    "tensors, metadata, message",
    [
        ({"retention": torch.ones(1, 2, 3, 4, 6)}, {}, r"retention and positions, got \['ret"),
        ({"a": torch.ones(1)}, {}, r"must hold the tensors retention and positions, got \['a'\]"),
        (
            {"retention": torch.ones(1, 2, 3, 4, 6), "positions": torch.ones(3).long()},
            {},
            r"got \[1, 2, 3, 4, 6\] float32 and \[3\] int64",
        ),
        (
            {"retention": torch.ones(1, 2, 3, 4, 6).half(), "positions": torch.ones(2).long()},
            {},
            r"float16 and \[2\] int64",
        ),
        ({"a": torch.ones(1)}, {"format_version": "2"}, "format_version must be <= 1, got 2"),
        ({"a": torch.ones(1)}, {"format_version": "x"}, "format_version must be <= 1, got x"),
    ],
    ids=["missing", "foreign", "batch", "dtype", "newer", "version"],
)
def test_bad_state(tensors, metadata, message, tmp_path):
    save_file(tensors, tmp_path / "state", metadata)
    with pytest.raises(ValueError, match=message):
        RetNetState.load(tmp_path / "state")


@pytest.mark.parametrize(
    "state, message",
    [
        (RetNetState(torch.ones(1, 2, 3, 4, 6), torch.ones(3).long()), r"and \[3\] int64"),
        (RetNetState(torch.ones(1, 2, 3, 4, 6).half(), torch.ones(2).long()), "float16"),
    ],
    ids=["batch", "dtype"],
)
def test_a_state_that_cannot_be_read_is_not_written(state, message, tmp_path):
    with pytest.raises(ValueError, match=f"state: must hold retention .*{message}"):
        state.save(tmp_path / "state")
    assert names(tmp_path) == []


def test_truncated_state(tmp_path):
    make_config().make_state(3).save(tmp_path / "state")
    truncate(tmp_path / "state", 200)
    with pytest.raises(ValueError, match="state: must be a whole safetensors file"):
        RetNetState.load(tmp_path / "state")
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        RetNetState.load(tmp_path / "none")
