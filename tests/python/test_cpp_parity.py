# SPDX-License-Identifier: Apache-2.0
"""The C++ modules give the numbers of the Python modules, for every switch.

Python writes models, the executable retnet_parity (tests/cpp/parity.cpp) runs them in C++, and the
results come back as a file.
"""

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest
import torch

from cases_nn import VARIANTS, make_config, make_model, random_ids
from retnet.generation import generate
from retnet.nn import RetNetForCausalLM

BUILD = Path(os.environ.get("RETNET_BUILD_DIR", Path(__file__).resolve().parents[2] / "build"))
EXECUTABLE = BUILD / "tests/cpp/retnet_parity"
# Beyond VARIANTS: the two norms and their eps differ, so that one taken for the other shows.
SWITCHES = {**VARIANTS, "norms apart": {"norm": "rms", "norm_eps": 1e-2, "group_norm_eps": 1e-4}}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
BOUNDS = torch.tensor([0, 4, 4, 5, 18], dtype=torch.int32)
CASES = [(name, dtype) for dtype in DTYPES for name in SWITCHES]
each_case = pytest.mark.parametrize("name, dtype", CASES, ids=lambda value: value)


def model_of(name, dtype):
    return make_model(DTYPES[dtype], **SWITCHES[name])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What C++ made of each case, in one process."""
    if not EXECUTABLE.exists():
        pytest.skip(f"{EXECUTABLE} was not built (RETNET_TESTS=ON)")
    cases = {
        f"{name} {dtype}": {
            "config": dataclasses.asdict(make_config(**SWITCHES[name])),
            "weights": dict(model_of(name, dtype).state_dict()),
            "ids": random_ids(2, 9),
            "bounds": BOUNDS,
        }
        for name, dtype in CASES
    }
    folder = tmp_path_factory.mktemp("parity")
    torch.save(cases, folder / "in.pt")
    command = [EXECUTABLE, folder / "in.pt", folder / "out.pt"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "out.pt", weights_only=False)  # C++ tags its dictionaries


def same(actual, expected):
    """Bit by bit: both run the same operators in the same order."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@each_case
def test_outputs_and_gradients(results, name, dtype):
    model, got, ids = model_of(name, dtype), results[f"{name} {dtype}"], random_ids(2, 9)
    output = model(ids, labels=ids)
    output.loss.backward()
    same(got["logits"], output.logits)
    same(got["loss"], output.loss)
    same(got["retention"], output.state.retention)
    same(got["positions"], output.state.positions)
    grads = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert list(got["grads"]) == list(grads)
    for key, grad in grads.items():
        same(got["grads"][key], grad)


@each_case
@torch.no_grad()
def test_packed_and_step(results, name, dtype):
    model, got, ids = model_of(name, dtype), results[f"{name} {dtype}"], random_ids(2, 9)
    row = ids.reshape(1, -1)
    packed = model(row, cu_seqlens=BOUNDS, labels=row)
    same(got["packed_logits"], packed.logits)
    same(got["packed_loss"], packed.loss)
    same(got["packed_positions"], packed.state.positions)
    step = model(ids[:, :1], state=model(ids).state)
    same(got["step_logits"], step.logits)
    same(got["step_retention"], step.state.retention)


@each_case
def test_generated_text(results, name, dtype):
    model, got, ids = model_of(name, dtype), results[f"{name} {dtype}"], random_ids(2, 9)
    for key, temperature in (("greedy", 0), ("drawn", 2.0)):
        options = {"max_new_tokens": 12, "temperature": temperature, "top_k": 5, "seed": 7}
        assert torch.equal(got[key], generate(model, ids, **options)), key


@pytest.mark.parametrize("name", SWITCHES)
def test_keys_and_initial_weights(results, name):
    """The same entries in the same order, and from one seed the same weights."""
    got = results[f"{name} float32"]
    torch.manual_seed(3)
    model = RetNetForCausalLM(make_config(**SWITCHES[name]))
    for stage in ("initial", "reset"):
        weights = model.state_dict()
        assert list(got[stage]) == list(weights)
        for key, weight in weights.items():
            same(got[stage][key], weight)
        model.reset_parameters()
