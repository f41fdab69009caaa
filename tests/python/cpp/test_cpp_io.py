# SPDX-License-Identifier: Apache-2.0
"""C++ reads the checkpoints and states that Python writes, and the reverse.

The executable retnet_exchange (tests/cpp/exchange.cpp) runs on folders that Python wrote, and
writes its own beside them.
"""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import retnet
from retnet import RetNetState, checkpoint
from retnet.nn import RetNetForCausalLM
from support.cases.convert import OLD, converted
from support.cases.nn import VARIANTS, make_config, make_model, random_ids
from support.exchange import EXECUTABLE, check_results, exchange, write_inputs
from support.references import torchscale_v1 as v1

# Numbers that have no short decimal form.
SWITCHES = {
    **VARIANTS,
    "numbers": {"decay": (-1 / 3, -5e-324, -0.1), "norm_eps": 0.1 / 3, "embed_scale": 12**0.5},
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
# Each switch is tested in one dtype, and each dtype is tested.
CASES = [(name, "float32") for name in SWITCHES] + [("learnable", "float64"), ("rms", "bfloat16")]
each_case = pytest.mark.parametrize("name, dtype", CASES, ids=lambda value: value)


def model_of(name, dtype):
    return make_model(DTYPES[dtype], **SWITCHES[name])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns the folder of each case, which C++ has read and written to."""
    made = {}
    for name, dtype in CASES:
        folder = made[name, dtype] = tmp_path_factory.mktemp("exchange")
        model, ids = model_of(name, dtype), random_ids(2, 9)
        model.save(folder)
        write_inputs(folder, model, ids)
    exchange(made.values())
    return made


@each_case
@torch.no_grad()
def test_cpp_reads_what_python_wrote(folders, name, dtype):
    check_results(folders[name, dtype], model_of(name, dtype), random_ids(2, 9))


@torch.no_grad()
def test_cpp_reads_what_convert_wrote(tmp_path):
    kind, layout, options, _ = OLD["fairseq"]  # tied embeddings, which are normalised
    torch.save(layout(v1.make_state(**kind)), tmp_path / "old.pt")
    model = converted(tmp_path / "old.pt", tmp_path / "new", **options)
    write_inputs(tmp_path / "new", model, random_ids(2, 9))
    exchange([tmp_path / "new"])
    check_results(tmp_path / "new", model, random_ids(2, 9))


@torch.no_grad()
def test_both_convert_a_decay_of_older_versions_alike(tmp_path):
    """The results are equal bit by bit for other values, for those of the configuration, and for
    both ends of the range and their neighbours.
    """
    values = torch.tensor([-0.031, -3.7, -1e-4, -0.5, -torch.inf, 0.0, -3e38, -1e-45])
    changes = {"learnable_decay": True, "num_heads": 8, "decay": (-0.5,) * 7 + (0.0,)}
    model = RetNetForCausalLM(make_config(**changes))
    model.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if name.endswith("log_decay_raw")]:
        del weights[name]
        weights[name.removesuffix("_raw")] = values.clone()
    save_file(weights, tmp_path / "model.safetensors")
    converted = retnet.load(tmp_path)
    write_inputs(tmp_path, converted, random_ids(2, 9))
    exchange([tmp_path])
    for name, tensor in retnet.load(tmp_path / "cpp").state_dict().items():
        assert torch.equal(tensor, converted.state_dict()[name]), name
    check_results(tmp_path, converted, random_ids(2, 9))


@each_case
@torch.no_grad()
def test_python_reads_what_cpp_wrote(folders, name, dtype):
    folder, model, ids = folders[name, dtype], model_of(name, dtype), random_ids(2, 9)
    again = retnet.load(folder / "cpp")
    assert again.config == model.config
    assert (folder / "cpp/config.json").read_text() == (folder / "config.json").read_text()
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
        assert again.state_dict()[key].dtype == tensor.dtype, key
    metadata = checkpoint.read_metadata(folder / "cpp")
    assert metadata == checkpoint.read_metadata(folder) == {"format": "pt"}
    state, expected = RetNetState.load(folder / "cpp/state"), model(ids, state=model(ids).state)
    assert torch.equal(state.retention, expected.state.retention)
    assert torch.equal(state.positions, expected.state.positions)


# A process of little memory between: what one has in use when it starts another counts as the
# other's peak.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def peak_memory(folder, **changes):
    """Returns the most bytes that C++ used while it read, ran and wrote a model, and the size of
    its file.
    """
    model = RetNetForCausalLM(make_config(**changes))
    model.save(folder)
    model.config.make_state(1).save(folder / "state")
    save_file({"ids": random_ids(1, 1)}, folder / "ids")
    command = [sys.executable, "-c", MEASURE, EXECUTABLE, folder]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(process.stdout), (folder / "model.safetensors").stat().st_size


@pytest.mark.skipif(not EXECUTABLE.exists(), reason=f"{EXECUTABLE} was not built")
def test_a_model_is_in_memory_once(tmp_path):
    """The two models are larger than the loaded libraries, and their activations are small."""
    least, less = peak_memory(tmp_path / "large", ffn_dim=100_000, num_layers=20)
    most, more = peak_memory(tmp_path / "larger", ffn_dim=100_000, num_layers=40)
    size = more - less
    assert size > 190e6
    assert size * 0.9 < most - least < size * 1.2
