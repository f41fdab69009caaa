# SPDX-License-Identifier: Apache-2.0
"""What only a GPU shows of decoding: the decode-step kernel on the shapes of models, and `generate`
by a CUDA graph. The tests are skipped if there is no GPU. test_gpu.py tests what every operator
does on a GPU.
"""

import itertools
import math

import pytest
import torch

import retnet.cpp
from retnet import RetNetConfig, _decode_step
from retnet._decode_step import WARM_UP, DecodeStep
from retnet.generation import generate
from retnet.nn import RetNetForCausalLM
from retnet.ops import multi_scale_retention_step, retention_step
from support.cases.nn import make_model, random_ids
from support.cases.ops import INT32, NORMS, STYLES, fused_inputs, step_inputs
from support.checks.multi_scale_retention_step import EPS, check
from support.gpu import clones, waiting_raises
from support.oracles.step import retention_step_by_definition
from support.tolerances import assert_close_to_reference

parametrize = pytest.mark.parametrize
HALF = torch.bfloat16
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The heads of the paper, torchscale's presets with rows of 8 bytes, and rows that are not of 16.
SHAPES = [(2, 3, 256, 512), (3, 2, 64, 428), (2, 2, 128, 432), (2, 2, 34, 63), (1, 1, 1024, 1024)]


@parametrize("shape", SHAPES, ids=str)
@parametrize("norm", NORMS)
@parametrize("style", STYLES)
@parametrize("dtype", DTYPES, ids=str)
def test_against_the_definition(dtype, style, norm, shape, gpu):
    check(fused_inputs(*shape, dtype=dtype, device=gpu), style=style, norm=norm)


@parametrize("S", [None, 9], ids=["rows", "slots"])
@parametrize("dtype", DTYPES, ids=str)
def test_slots_and_late_positions(S, dtype, gpu):
    inputs = fused_inputs(5, 4, 64, 128, S=S, dtype=dtype, device=gpu)
    inputs["positions"] = inputs["positions"] * 1_000_003
    check(inputs)


@parametrize("dtype", DTYPES, ids=str)
def test_retention_alone(dtype, gpu):
    inputs = step_inputs(3, 4, 7, 130, S=6, dtype=dtype, device=gpu)
    exact = {n: (x.double() if x.is_floating_point() else x).cpu() for n, x in inputs.items()}
    out = retention_step(**inputs)
    expected, state = retention_step_by_definition(**exact)
    assert_close_to_reference(out, expected, dtype)
    assert_close_to_reference(inputs["state"], state, torch.float32, name="state")


@parametrize("view", ["permuted", "offset"])
def test_states_of_any_strides(view, gpu):
    inputs = fused_inputs(3, 4, 32, 64, dtype=HALF, device=gpu)
    expected, state = inputs | {"state": inputs["state"].clone()}, inputs["state"]
    if view == "permuted":
        inputs["state"] = state.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
    else:  # rows that start at 4 bytes
        inputs["state"] = torch.zeros(3, 4, 32, 67, device=gpu)[..., 1:65]
        inputs["state"].copy_(state)
    assert torch.equal(
        multi_scale_retention_step(**inputs, eps=EPS),
        multi_scale_retention_step(**expected, eps=EPS),
    )
    assert torch.equal(inputs["state"], expected["state"])


def test_a_row_has_the_same_bits_in_any_batch(gpu):
    """This holds however many blocks share a head."""
    inputs = fused_inputs(200, 4, 256, 512, dtype=HALF, device=gpu)
    rows = ("q", "k", "v", "gate", "state", "positions")
    alone = {n: x[7:8].clone() if n in rows else x for n, x in inputs.items()}
    some = {n: x[7:30].clone() if n in rows else x for n, x in inputs.items()}
    results = [multi_scale_retention_step(**x, eps=EPS) for x in (alone, some, inputs)]
    assert torch.equal(results[0], results[1][:1])
    assert torch.equal(results[1], results[2][7:30])
    assert torch.equal(alone["state"], inputs["state"][7:8])


def test_clusters_in_a_graph(gpu):
    """The graph decodes one row, and the blocks of a cluster share its heads."""
    inputs = fused_inputs(1, 2, 256, 512, dtype=HALF, device=gpu)
    state = inputs["state"].clone()
    expected = [multi_scale_retention_step(**inputs, eps=EPS).clone() for _ in range(3)]
    inputs["state"].copy_(state)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = multi_scale_retention_step(**inputs, eps=EPS)
    for each in expected:
        graph.replay()
        assert torch.equal(out, each)


@parametrize("slot", [7, 2**31 - 1])
def test_a_slot_past_the_end_touches_nothing(slot, gpu):
    inputs = fused_inputs(2, 4, 32, 64, S=7, dtype=HALF, device=gpu)
    inputs["slots"] = torch.tensor([3, slot], dtype=INT32, device=gpu)
    before = clones(inputs)
    out = multi_scale_retention_step(**inputs, eps=EPS)
    assert out[0].any() and not out[1].any()
    changed = (inputs["state"] != before["state"]).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [3]


@pytest.fixture
def recordings(monkeypatch) -> list[int]:
    """Returns a list with an item for each graph that was recorded."""
    made: list[int] = []
    record = _decode_step.record

    def counted(step, device):
        replay = record(step, device)
        made.append(1)
        return replay

    monkeypatch.setattr(_decode_step, "record", counted)
    _decode_step.say_once.cache_clear()
    return made


def gpu_model(gpu, dtype=HALF, **switches):
    sizes = {"vocab_size": 64, "embed_dim": 128, "num_layers": 3, "num_heads": 2, "key_dim": 64}
    config = RetNetConfig(**sizes, value_dim=128, ffn_dim=256, **switches)
    torch.manual_seed(0)
    return RetNetForCausalLM(config, device=gpu, dtype=dtype)


@pytest.mark.not_poisoned
@parametrize("dtype", [torch.float32, HALF, torch.float64], ids=str)
@parametrize(
    "switches",
    [{}, {"decay_norm": True}, {"learnable_decay": True, "tie_embeddings": True}],
    ids=str,
)
def test_a_recorded_step_is_an_eager_one(switches, dtype, recordings, monkeypatch, gpu):
    model = gpu_model(gpu, dtype, **switches)
    prompts = [random_ids(1, length)[0].to(gpu) for length in (3, 9)]
    options = ({"temperature": 0}, {"seed": 1}, {"seed": 2, "top_k": 20, "top_p": 0.9})
    recorded = [generate(model, prompts, max_new_tokens=40, **o) for o in options]
    assert len(recordings) == len(options)
    monkeypatch.setattr(_decode_step, "has_graphs", lambda device: False)
    for texts, o in zip(recorded, options, strict=True):
        eager = generate(model, prompts, max_new_tokens=40, **o)
        assert all(map(torch.equal, texts, eager))
    assert len(recordings) == len(options)


@pytest.mark.not_poisoned
def test_replays_wait_for_nothing(recordings, gpu):
    model = gpu_model(gpu)
    with torch.no_grad():
        step = DecodeStep(model, model(random_ids(4, 5).to(gpu)).state)
        ids = random_ids(4, 1).to(gpu)
        for _ in range(WARM_UP + 1):
            step(ids)
        assert recordings
        with waiting_raises():
            for _ in range(5):
                ids = step(ids).argmax(-1)


@pytest.mark.not_poisoned
def test_a_hook_keeps_the_steps_eager(recordings, caplog, gpu):
    model = gpu_model(gpu)
    prompts = random_ids(2, 5).to(gpu)
    expected = generate(model, prompts, max_new_tokens=20, temperature=0)
    calls = []
    model.norm.register_forward_hook(lambda *_: calls.append(1))
    texts = generate(model, prompts, max_new_tokens=20, temperature=0)
    assert all(map(torch.equal, texts, expected))
    assert len(calls) == 20 and len(recordings) == 1
    assert "module norm has forward hooks" in caplog.text


@pytest.mark.not_poisoned
def test_a_step_that_waits_is_not_recorded(recordings, monkeypatch, caplog, gpu):
    """A failed recording leaves the state unchanged and the device usable."""
    model = gpu_model(gpu)
    prompts = random_ids(2, 5).to(gpu)
    expected = generate(model, prompts, max_new_tokens=20, temperature=0)
    forward = RetNetForCausalLM.forward

    def waiting(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits.sum().item()
        return output

    monkeypatch.setattr(RetNetForCausalLM, "forward", waiting)
    texts = generate(model, prompts, max_new_tokens=20, temperature=0)
    assert all(map(torch.equal, texts, expected)) and len(recordings) == 1
    assert "recording it failed" in caplog.text
    assert torch.ones(3, device=gpu).sum().item() == 3


@pytest.mark.not_poisoned
def test_generate_of_cpp(gpu):
    """C++ generate records its own graph, and Python generate records one of a C++ model."""
    model = gpu_model(gpu)
    twin = retnet.cpp.RetNetForCausalLM(model.config, device=gpu, dtype=HALF)
    twin.load_state_dict(model.state_dict())
    prompts = random_ids(2, 5).to(gpu)
    expected = generate(model, prompts, max_new_tokens=40, temperature=0)
    for texts in (
        twin.generate(prompts, max_new_tokens=40, temperature=0),
        generate(twin, prompts, max_new_tokens=40, temperature=0),
    ):
        assert all(map(torch.equal, texts, expected))


@pytest.mark.not_poisoned
@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 0}, {"top_p": 0.5}])
def test_logits_that_are_not_finite(options, gpu):
    """One call raises an error, and the device stays usable."""
    model = gpu_model(gpu)
    twin = retnet.cpp.RetNetForCausalLM(model.config, device=gpu, dtype=HALF)
    twin.load_state_dict(model.state_dict())
    prompts = random_ids(2, 5).to(gpu)
    for bad in (model, twin):
        with torch.no_grad():
            bad.norm.weight[0] = math.nan
        with pytest.raises(ValueError, match="logits must be finite, got nan for prompt 0"):
            generate(bad, prompts, max_new_tokens=3, **options)
    with pytest.raises(ValueError, match="logits must be finite, got nan for prompt 0"):
        twin.generate(prompts, max_new_tokens=3, **options)
    later, calls = gpu_model(gpu), itertools.count()
    hook = lambda *args: args[2] * (math.nan if next(calls) > 2 else 1.0)  # noqa: E731
    later.lm_head.register_forward_hook(hook)
    with pytest.raises(ValueError, match="logits must be finite"):
        generate(later, prompts, max_new_tokens=9, **options)
    assert len(generate(gpu_model(gpu), prompts, max_new_tokens=3, **options)) == 2


@pytest.mark.not_poisoned
def test_the_small_models_of_the_other_tests(gpu):
    """The heads are so narrow that rows of the state are not of 16 bytes."""
    model = make_model().to(gpu)
    prompts = random_ids(2, 5).to(gpu)
    texts = generate(model, prompts, max_new_tokens=30, temperature=0)
    expected = generate(make_model(), prompts.cpu(), max_new_tokens=30, temperature=0)
    for text, other in zip(texts, expected, strict=True):
        assert torch.equal(text.cpu(), other)
