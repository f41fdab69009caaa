# SPDX-License-Identifier: Apache-2.0
"""The forms, states and packed sequences of a model agree, as does its loss."""

import pytest
import torch
from torch.nn import functional as F

from retnet import ops
from retnet.nn import MultiScaleRetention, RetNet, RetNetState
from support.cases.nn import close, each_variant, make_config, make_model, random_ids


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
def test_forms_agree(form):
    model = make_model()
    ids = random_ids(2, 150)
    expected, output = model(ids, labels=ids), model(ids, labels=ids, form=form)
    close(model(ids, form=form).logits, model(ids).logits)
    close(output.state.retention, expected.state.retention)
    parameters = list(model.parameters())
    expected_grads = torch.autograd.grad(expected.loss, parameters)
    for a, b in zip(torch.autograd.grad(output.loss, parameters), expected_grads, strict=True):
        close(a, b, 1e-9)


def test_form_reaches_the_op():
    with pytest.raises(RuntimeError, match="form"):
        make_model()(random_ids(1, 3), form="sideways")


@each_variant
def test_segments_equal_the_whole(changes):
    model = make_model(**changes)
    ids = random_ids(2, 40)
    whole = model(ids)
    state, parts = None, []
    for segment in ids.split([11, 1, 0, 28], dim=1):
        output = model(segment, state=state)
        parts.append(output.logits)
        state = output.state
    close(torch.cat(parts, 1), whole.logits)
    close(state.retention, whole.state.retention)
    assert state.positions.tolist() == [40, 40]


def test_gradients_cross_segments():
    model = make_model()
    ids = random_ids(1, 20)
    parameters = list(model.parameters())
    whole = torch.autograd.grad(model(ids).logits[:, 12:].square().sum(), parameters)
    first = model(ids[:, :12])
    second = model(ids[:, 12:], state=first.state)
    parts = torch.autograd.grad(second.logits.square().sum(), parameters)
    for a, b in zip(parts, whole, strict=True):
        close(a, b, 1e-9)
    cut = model(ids[:, 12:], state=model(ids[:, :12]).state.detach())
    grads = torch.autograd.grad(cut.logits.square().sum(), parameters)
    assert not torch.allclose(grads[0], whole[0])


@each_variant
def test_decode_steps_equal_chunkwise(changes, monkeypatch):
    model = make_model(**changes)
    ids = random_ids(2, 30)
    whole = model(ids)
    calls = []
    step = ops.multi_scale_retention_step
    monkeypatch.setattr(
        ops, "multi_scale_retention_step", lambda *a, **k: calls.append(1) or step(*a, **k)
    )
    state, parts = model.config.make_state(2, dtype=torch.float64), []
    with torch.no_grad():
        for token in ids.split(1, dim=1):
            output = model(token, state=state, inplace=len(parts) > 15)
            parts.append(output.logits)
            state = output.state
    close(torch.cat(parts, 1), whole.logits)
    close(state.retention, whole.state.retention)
    assert state.positions.tolist() == [30, 30]
    assert len(calls) == 30 * 2


def test_step_copies_unless_inplace():
    model = make_model()
    with torch.no_grad():
        state = model(random_ids(2, 5)).state
        before = state.fork()
        copied = model(random_ids(2, 1), state=state).state
        assert torch.equal(state.retention, before.retention)
        assert state.positions.tolist() == [5, 5]
        assert copied.positions.tolist() == [6, 6]
        same = model(random_ids(2, 1), state=state, inplace=True).state
    assert same.retention is state.retention and same.positions is state.positions
    assert torch.equal(state.retention, copied.retention)
    assert state.positions.tolist() == [6, 6]


def test_one_token_with_grad_is_no_step():
    model = make_model()
    state = model.config.make_state(2, dtype=torch.float64)
    ids = random_ids(2, 1)
    output = model(ids, state=state, inplace=True)
    assert output.logits.requires_grad and not state.retention.any()
    with torch.no_grad():
        close(model(ids, state=state).logits, output.logits)


@pytest.mark.parametrize("with_state", [False, True])
def test_packed_equals_separate(with_state):
    model = make_model()
    lengths = [7, 0, 1, 12]
    ids = random_ids(1, sum(lengths))
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    start = None
    if with_state:
        with torch.no_grad():
            start = model(random_ids(4, 6)).state
            start.positions.copy_(torch.tensor([6, 2, 0, 9]))
    packed = model(ids, state=start, cu_seqlens=bounds)
    packed_loss = model(ids, state=start, cu_seqlens=bounds, labels=ids).loss
    loss, targets = 0.0, 0
    for n, part in enumerate(ids.split(lengths, dim=1)):
        row = None if start is None else start.select(torch.tensor([n]))
        alone = model(part, state=row)
        close(packed.logits[:, bounds[n] : bounds[n + 1]], alone.logits)
        close(packed.state.retention[:, n], alone.state.retention[:, 0])
        assert packed.state.positions[n] == alone.state.positions[0]
        loss += F.cross_entropy(alone.logits[0, :-1], part[0, 1:], reduction="sum")
        targets += max(part.shape[1] - 1, 0)
    close(packed_loss, loss / targets)


def test_labels_are_shifted_and_masked():
    model = make_model()
    ids = random_ids(2, 5)
    labels = ids.clone()
    labels[0, 3] = labels[1, 0] = -100
    output = model(ids, labels=labels)
    log_p = model(ids).logits.log_softmax(-1)
    terms = [
        -log_p[b, t, ids[b, t + 1]] for b in range(2) for t in range(4) if labels[b, t + 1] != -100
    ]
    assert len(terms) == 7
    close(output.loss, sum(terms) / 7)


def test_loss_is_float32_in_bfloat16_models():
    model = make_model(torch.bfloat16)
    ids = random_ids(2, 5)
    output = model(ids, labels=ids)
    assert output.logits is None and output.loss.dtype == torch.float32
    assert model(ids).logits.dtype == torch.bfloat16
    assert output.state.retention.dtype == torch.float32


def test_state_fork_select_detach():
    model = make_model()
    state = model(random_ids(3, 4)).state
    fork = state.fork()
    fork.positions.zero_()
    assert state.positions.tolist() == [4, 4, 4]
    picked = state.select(torch.tensor([2, 2, 0, 1]))
    for row, origin in enumerate([2, 2, 0, 1]):
        assert torch.equal(picked.retention[:, row], state.retention[:, origin])
    assert picked.positions.tolist() == [4] * 4
    assert state.retention.requires_grad and not state.detach().retention.requires_grad


def test_layer_alone_defaults_to_a_start():
    torch.manual_seed(0)
    layer = MultiScaleRetention(make_config(), dtype=torch.float64)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    out, state = layer(x)
    expected, _ = layer(x, positions=torch.arange(5).expand(2, 5))
    close(out, expected)
    assert out.shape == (2, 5, 12) and state.shape == (2, 3, 4, 6)


def test_body_gives_hidden_and_state():
    hidden, state = RetNet(make_config())(random_ids(2, 5))
    assert hidden.shape == (2, 5, 12)
    assert isinstance(state, RetNetState)
