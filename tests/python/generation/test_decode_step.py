# SPDX-License-Identifier: Apache-2.0
"""The steps of `generate` reuse the same memory; when and why they are not a CUDA graph. A stand-in
replaces the graph. test_gpu_step.py tests what only a GPU shows.
"""

import logging
from itertools import islice

import pytest
import torch
from torch import nn
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import retnet.cpp
from retnet import _decode_step, generation
from retnet._decode_step import WARM_UP, DecodeStep, graph_unsupported_reason
from retnet.generation import generate, stream
from retnet.nn import RetNetForCausalLM
from support.cases.nn import each_variant, make_config, make_model, random_ids

CPU = torch.device("cpu")
GREEDY = {"temperature": 0}


class Recorder:
    """Stands in for CUDA graphs: recording runs nothing, replaying writes into the same memory."""

    def __init__(self) -> None:
        self.beside = self.recorded = self.replayed = 0
        self.error: Exception | None = None

    def run_beside(self, step, device) -> None:
        self.beside += 1
        step()

    def record(self, step, device):
        owner = step.__self__
        before = owner._state.fork()
        step()
        for live, kept in zip(owner._state, before, strict=True):
            live.copy_(kept)
        if self.error is not None:
            raise self.error
        self.recorded += 1
        logits = owner._logits.fill_(torch.nan)

        def replay() -> None:
            self.replayed += 1
            step()
            logits.copy_(owner._logits)
            owner._logits = logits

        return replay


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(_decode_step, "has_graphs", lambda device: True)
    monkeypatch.setattr(_decode_step, "beside", recorder.run_beside)
    monkeypatch.setattr(_decode_step, "record", recorder.record)
    _decode_step.say_once.cache_clear()
    return recorder


def eager_logits(model, prompt, tokens):
    """Returns the logits of each token of [N, T], by plain calls of the model, and the last
    state.
    """
    with torch.no_grad():
        state, logits = model(prompt).state, []
        for t in range(tokens.shape[1]):
            output = model(tokens[:, t : t + 1], state=state)
            state = output.state
            logits.append(output.logits)
    return logits, state


@pytest.mark.parametrize("make", [lambda model: model, None], ids=["nn", "cpp"])
def test_steps_are_plain_calls(make, recorder):
    """This also holds for the steps from the recorded one on. Each step runs in the memory of the
    last.
    """
    model = make_model()
    if make is None:
        twin = retnet.cpp.RetNetForCausalLM(model.config)
        twin.load_state_dict(model.state_dict())
        model = twin
    prompt, tokens = random_ids(2, 5), random_ids(2, 7)
    expected, state = eager_logits(model, prompt, tokens)
    with torch.no_grad():
        own = model(prompt).state
        step = DecodeStep(model, own)
        for t in range(7):
            logits = step(tokens[:, t : t + 1])
            assert torch.equal(logits, expected[t]), t
            if t == WARM_UP:
                memory = logits.data_ptr()
            assert t < WARM_UP or logits.data_ptr() == memory
    assert all(map(torch.equal, own, state))
    counts = (recorder.beside, recorder.recorded, recorder.replayed)
    assert counts == (WARM_UP, 1, 7 - WARM_UP)


def test_generate_gives_the_same_text(recorder):
    model, prompts = make_model(), [random_ids(1, 4)[0], random_ids(1, 6)[0]]
    recorded = [generate(model, prompts, max_new_tokens=12, **o) for o in (GREEDY, {"seed": 3})]
    assert (recorder.recorded, recorder.replayed) == (2, 2 * (11 - WARM_UP))
    recorder.error = RuntimeError("CUDA error: no\nand more")
    eager = [generate(model, prompts, max_new_tokens=12, **o) for o in (GREEDY, {"seed": 3})]
    assert recorder.recorded == 2
    for texts, others in zip(recorded, eager, strict=True):
        assert all(map(torch.equal, texts, others))


def test_few_steps_record_nothing(recorder):
    generate(make_model(), random_ids(1, 4), max_new_tokens=1 + WARM_UP)
    assert recorder.recorded == 0


def test_no_graph_on_the_cpu(monkeypatch, caplog):
    monkeypatch.setattr(_decode_step, "record", lambda *_: pytest.fail("recorded"))
    generate(make_model(), random_ids(1, 4), max_new_tokens=6)
    assert not caplog.records


def test_the_reason_is_logged_once(recorder, caplog):
    model = make_model()
    recorder.error = RuntimeError("the recording has ended")
    recorder.error.__context__ = RuntimeError("CUDA error: no\nand more")  # what came first
    with caplog.at_level(logging.WARNING, logger="retnet"):
        for _ in range(2):
            generate(model, random_ids(1, 4), max_new_tokens=8)
        model.lm_head.register_forward_hook(lambda *_: None)
        generate(model, random_ids(1, 4), max_new_tokens=8)
    start = "generate: decodes without a CUDA graph: "
    assert [record.getMessage() for record in caplog.records] == [
        start + "recording it failed: CUDA error: no",
        start + "module lm_head has forward hooks, which a graph would not run",
    ]


# Operators that read the values of a tensor on the host, or whose output shape depends on them.
READS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"}
READS |= {"aten::masked_select", "aten::unique", "aten::repeat_interleave"}


def operators(call) -> set[str]:
    """Records all operators that are called, also inside operators and C++ modules."""
    with profile() as recorded, torch.no_grad():
        call()
    return {event.key for event in recorded.key_averages()}


@each_variant
def test_a_step_reads_nothing_on_the_host(changes):
    model = make_model(torch.float32, **changes)
    for each in (model, retnet.cpp.RetNetForCausalLM(model.config)):
        with torch.no_grad():
            step = DecodeStep(each, each(random_ids(2, 5)).state)
        names = operators(lambda step=step: step(random_ids(2, 1)))
        assert "retnet::multi_scale_retention_step" in names
        assert not names & READS


def test_reading_would_show():
    model = make_model()
    stops = {"max_new_tokens": 3, "stop_tokens": [1]}
    assert operators(lambda: generate(model, random_ids(1, 4), **stops)) & READS


def test_checks_of_the_logits_read_and_steps_between_do_not(monkeypatch):
    """This is tested as on CUDA, where reading would wait."""
    monkeypatch.setattr(generation, "_is_synchronous", lambda device: False)
    tokens = stream(make_model(), random_ids(1, 4), max_new_tokens=9, **GREEDY)
    assert operators(lambda: next(tokens)) & READS
    assert not operators(lambda: list(islice(tokens, 7))) & READS
    assert operators(lambda: list(tokens)) & READS


class Devices(TorchDispatchMode):
    """Records the devices of all tensors that operators take and return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                self.seen.add(leaf.device.type)
        return result


@each_variant
def test_a_step_copies_nothing_from_the_host(changes):
    config = make_config(**changes)
    model = RetNetForCausalLM(config, device="meta")
    step = DecodeStep(model, config.make_state(2, device="meta"))
    ids = torch.zeros(2, 1, dtype=torch.int64, device="meta")
    with torch.no_grad(), Devices() as devices:
        step(ids)
    assert devices.seen == {"meta"}
    with Devices() as devices:
        torch.zeros(2, device="meta").copy_(torch.zeros(2))
    assert devices.seen == {"meta", "cpu"}


class Adapted(nn.Linear):
    """Takes the place of a Linear, as LoRA modules do."""


class Wrapped(torch.Tensor):
    """A tensor subclass, like DTensors and quantised weights."""


def replace_child(model):
    model.layers[0].retention.q_proj.__class__ = Adapted


def replace_forward(model):
    model.layers[1].forward = model.layers[1].forward


def move(model):
    model.lm_head.to("meta")


def wrap(model):
    weight = model.lm_head._parameters.pop("weight")
    model.lm_head.weight = weight.detach().as_subclass(Wrapped)
    model.lm_head.register_buffer("held", weight.detach().as_subclass(Wrapped))


UNSUPPORTED = {
    "hook": (
        lambda model: model.norm.register_forward_hook(lambda *_: None),
        "module norm has forward hooks, which a graph would not run",
    ),
    "pre-hook of the model": (
        lambda model: model.register_forward_pre_hook(lambda *_: None),
        "the model has forward hooks, which a graph would not run",
    ),
    "forward": (replace_forward, "the forward method of module layers.1 was replaced"),
    "LoRA": (
        replace_child,
        "module layers.0.retention.q_proj is a test_decode_step.Adapted, not of torch.nn or retnet",
    ),
    "devices": (move, "lm_head.weight is on meta, the prompts on cpu"),
    "subclass": (wrap, "lm_head.held is a test_decode_step.Wrapped"),
}


@pytest.mark.parametrize(("change", "reason"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_reason(change, reason):
    model = make_model()
    assert graph_unsupported_reason(model, CPU) is None
    assert graph_unsupported_reason(retnet.cpp.RetNetForCausalLM(model.config), CPU) is None
    change(model)
    assert graph_unsupported_reason(model, CPU) == reason


def test_unsupported_reason_of_the_moment():
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert graph_unsupported_reason(model, CPU).startswith("autocast is on")
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert graph_unsupported_reason(model, CPU) == "global forward hooks are registered"
    finally:
        hook.remove()
    assert graph_unsupported_reason(model, CPU) is None
