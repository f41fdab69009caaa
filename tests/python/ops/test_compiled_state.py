# SPDX-License-Identifier: Apache-2.0
"""Operators that write to an argument, and the states of models, work under Inductor and
AOTInductor.

Each function runs once as it is and once compiled, on inputs with the same values."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from retnet import RetNetConfig, ops
from retnet.nn import RetNetForCausalLM
from retnet.state import RetNetState
from support.cases.ops import fused_inputs, step_inputs

parametrize = pytest.mark.parametrize
BATCHES = (1, 3, 5)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Clears torch's caches of graphs, which know operators only by name. No graph of another test
    or of another version of the library is used.
    """
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield


def assert_same(actual, expected, tolerance=2e-6):
    for a, b in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# The operators


SHAPE = (2, 3, 4, 8)  # the shape of a state [B, H, Dk, Dv]
TOKENS = [
    [torch.randn(2, 3, n, generator=torch.Generator().manual_seed(seed)) for n in (4, 4, 8, 8)]
    for seed in range(3)
]
LOG_DECAY = torch.tensor([-0.1, -0.3, -1.0])
FREQUENCIES = torch.tensor([1.0, 0.1])
POSITIONS = torch.tensor([3, 7])
TARGETS = torch.tensor([[1, 2, 3, 0] * 6] * 3)


def retention_step(state: Tensor, token: int) -> Tensor:
    q, k, v, _ = TOKENS[token]
    return ops.retention_step(q, k, v, LOG_DECAY, state)


def multi_scale_retention_step(state: Tensor, token: int) -> Tensor:
    return ops.multi_scale_retention_step(
        *TOKENS[token], LOG_DECAY, state, POSITIONS, FREQUENCIES, eps=1e-6
    )


def cross_entropy(logits: Tensor, token: int) -> Tensor:
    return torch.ops.retnet.cross_entropy_with_gradient_(logits.view(24, 8), TARGETS[token])


def copies_of_a_state(call, x):
    kept, outputs = [x.clone()], []
    for token in range(3):
        outputs.append(call(x, token))
        kept.append(x.clone())
    return kept, outputs


def copy_of_a_layer(call, layers):
    first = call(layers[1], 1)
    kept = layers[1].clone()
    return first, kept, call(layers[1], 2)


def layers_of_a_copy(call, layers):
    after = layers.clone()
    return [call(after[layer], layer) for layer in range(3)], after


PROGRAMS = {copies_of_a_state: SHAPE, copy_of_a_layer: (3, *SHAPE), layers_of_a_copy: (3, *SHAPE)}


@pytest.mark.not_poisoned
@parametrize("call", [retention_step, multi_scale_retention_step, cross_entropy])
def test_copies_between_calls_keep_their_values(call):
    """All programs are in one graph, because starting the compiler takes most of the time."""

    def run(*inputs):
        return [program(call, x) for program, x in zip(PROGRAMS, inputs, strict=True)]

    first = [torch.randn(shape) for shape in PROGRAMS.values()]
    plain, compiled = ([x.clone() for x in first] for _ in range(2))
    with torch.no_grad():
        expected = run(*plain)
        actual = torch.compile(run, fullgraph=True)(*compiled)
    assert_same(actual, expected)
    assert_same(compiled, plain)


FORMS = {
    "retention_step": step_inputs(S=7, dtype=torch.float32),
    "multi_scale_retention_step": {**fused_inputs(dtype=torch.float32), "eps": 1e-6},
    "cross_entropy_with_gradient_": {
        "logits": torch.randn(5, 11, generator=torch.Generator().manual_seed(0)),
        "targets": torch.tensor([0, 10, -100, 3, 3]),
    },
}


@parametrize("name", FORMS)
def test_functional_forms(name):
    """They pass torch's checks, do not change their arguments and refuse gradients."""
    in_place = getattr(torch.ops.retnet, name).default
    functional = getattr(torch.ops.retnet, f"_{name}_functional").default
    written = next(x.name for x in in_place._schema.arguments if x.alias_info is not None)
    inputs = FORMS[name]
    before = inputs[written].clone()
    result, after = functional(**inputs)
    assert torch.equal(inputs[written], before)
    changed = before.clone()
    expected = in_place(**{**inputs, written: changed})
    assert torch.equal(result, expected) and torch.equal(after, changed)
    torch.library.opcheck(functional, (), inputs)
    with pytest.raises(RuntimeError, match=f"{written} must not require grad"):
        functional(**{**inputs, written: before.requires_grad_()})


# Models


def make_model(**changes) -> RetNetForCausalLM:
    torch.manual_seed(0)
    return RetNetForCausalLM(RetNetConfig.preset("tiny", **changes)).eval()


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(length))


class TwoSteps(nn.Module):
    """A program of tensors: a step in place and a step on a copy, with forks between them."""

    def __init__(self, model: RetNetForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, retention: Tensor, positions: Tensor):
        state = RetNetState(retention, positions)
        before = state.fork()
        first = self.model(ids[:, :1], state=state, inplace=True)
        between = first.state.fork()
        second = self.model(ids[:, 1:], state=first.state)
        return first.logits, *before, *between, second.logits, *second.state


@torch.no_grad()
def check_two_steps(model, actual_of, batches):
    for batch in batches:
        start, ids = model(random_ids(batch, 20)).state, random_ids(batch, 2)
        plain, traced = start.fork(), start.fork()
        expected, actual = TwoSteps(model)(ids, *plain), actual_of(ids, *traced)
        assert_same(actual, expected, 1e-5)
        for layer in range(model.config.num_layers):
            assert_same(traced.retention[layer], plain.retention[layer], 1e-5)
        assert_same(traced.positions, torch.full((batch,), 21))


@pytest.mark.not_poisoned
def test_compiled_steps_with_forks_between():
    model = make_model(num_layers=1)
    compiled = torch.compile(TwoSteps(model), fullgraph=True, dynamic=True)
    check_two_steps(model, compiled, (3, 5))


@pytest.mark.not_poisoned
def test_ahead_of_time_compiled_steps_with_forks_between(tmp_path):
    model = make_model()
    batch = torch.export.Dim("B", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(
            TwoSteps(model),
            (random_ids(2, 2), *model(random_ids(2, 20)).state),
            dynamic_shapes=({0: batch}, {1: batch}, {0: batch}),
        )
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "steps.pt2")
    )
    check_two_steps(model, torch._inductor.aoti_load_package(path), (1, 3, 5))
