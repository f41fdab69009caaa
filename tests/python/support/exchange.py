# SPDX-License-Identifier: Apache-2.0
"""Folders that C++ reads and writes, by the executable retnet_exchange (tests/cpp/exchange.cpp)."""

import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from retnet.generation import generate
from support.paths import BUILD

EXECUTABLE = BUILD / "tests/cpp/retnet_exchange"


def exchange(folders):
    """Lets C++ read the folders and write to them, in one process."""
    if not EXECUTABLE.exists():
        pytest.skip(f"{EXECUTABLE} was not built (RETNET_TESTS=ON, nlohmann_json)")
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [EXECUTABLE, *folders]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    assert done.returncode == 0, done.stderr


def write_inputs(folder, model, ids):
    model(ids).state.detach().save(folder / "state")
    save_file({"ids": ids}, folder / "ids")


def check_results(folder, model, ids):
    """Compares the logits bit by bit, also those after the state, and the text."""
    results = load_file(folder / "cpp/results")
    assert torch.equal(results["logits"], model(ids, state=model(ids).state).logits)
    text = torch.stack(generate(model, ids, max_new_tokens=12, temperature=0))
    assert torch.equal(results["text"], text)
