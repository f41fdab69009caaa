# SPDX-License-Identifier: Apache-2.0
"""Layers of C++ and Python models are recomputed in the backward pass."""

import copy

import pytest
import torch

from retnet.state import RetNetState
from support.cases.cpp import gradients, same, twin_of
from support.cases.nn import close, make_model, random_ids


@pytest.mark.parametrize("kind", ["C++", "Python"])
def test_parameter_hooks_with_checkpointed_layers(kind):
    """Each hook runs once, and what it returns becomes the gradient."""
    ids, found = random_ids(2, 6), []
    for on in (False, True):
        model = twin_of(make_model()) if kind == "C++" else make_model()
        model.checkpoint_layers = on
        weight, calls = model.get_parameter("layers.0.retention.q_proj.weight"), []
        weight.register_hook(lambda grad, calls=calls: calls.append(grad) or grad * 2)
        weight.register_post_accumulate_grad_hook(lambda p, calls=calls: calls.append(p.grad))
        for _ in range(2):  # the hooks are still there the second time
            model.zero_grad()
            model(ids, labels=ids).loss.backward()
        same(calls[1], calls[0] * 2)
        assert len(calls) == 4
        found.append(weight.grad)
    same(found[1], found[0])


def test_checkpointing_by_torch():
    ids = random_ids(2, 6)
    plain, recomputed = twin_of(make_model()), twin_of(make_model())
    plain(ids, labels=ids).loss.backward()
    torch.utils.checkpoint.checkpoint(
        lambda x: recomputed(x, labels=x).loss, ids, use_reentrant=False
    ).backward()
    same(gradients(recomputed), gradients(plain))


def saved_bytes(model, ids, **call):
    """Returns the bytes that a forward pass keeps for the backward pass, except parameters."""
    own = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def count(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model(ids, labels=ids, **call).loss
    return loss, sum(kept.values())


@pytest.mark.parametrize("kind", ["C++", "Python"])
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointed_layers(kind, autocast):
    """The gradients, also of the state, are the same as without checkpointing, and take less
    memory.
    """
    ids = random_ids(2, 40)
    gradients_of, kept = [], []
    for on in (False, True):
        model = make_model(torch.float32, learnable_decay=True, num_layers=4)
        if kind == "C++":
            model = twin_of(model, torch.float32)
        model.checkpoint_layers = on
        state = model.config.make_state(2)
        torch.manual_seed(0)
        state.retention.normal_().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, nbytes = saved_bytes(model, ids, state=state)
        loss.backward()
        gradients_of.append({**gradients(model), "state": state.retention.grad})
        kept.append(nbytes)
    # log_decay is used twice, and its gradient is summed in another order.
    torch.testing.assert_close(gradients_of[1], gradients_of[0], rtol=1e-5, atol=1e-6)
    assert all(grad is not None and grad.any() for grad in gradients_of[1].values())
    assert kept[1] < 0.5 * kept[0]


IN_PLACE = {
    "state": lambda model, state, bounds: state.retention.mul_(2),
    "state of a layer": lambda model, state, bounds: state.retention[1].mul_(2),
    "weight": lambda model, *_: model.get_parameter("layers.0.ffn.up_proj.weight").mul_(2),
    "bias of a norm": lambda model, *_: model.get_parameter("layers.1.ffn_norm.bias").mul_(2),
    # Each call computes the positions of its tokens from these.
    "positions": lambda model, state, bounds: state.positions.add_(1),
    "cu_seqlens": lambda model, state, bounds: bounds.sub_(1).clamp_(min=0),
}


@pytest.mark.parametrize("kind", ["C++", "Python"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["chunkwise", "parallel", "recurrent"])
@pytest.mark.parametrize("changed", IN_PLACE)
def test_a_change_in_place_is_seen_by_checkpointed_layers(kind, packed, form, changed):
    """The change raises, or does as little harm, as without checkpointing."""
    if changed == "cu_seqlens" and not packed:
        pytest.skip("no cu_seqlens")
    found = []
    for on in (False, True):
        model = make_model() if kind == "Python" else twin_of(make_model())
        model.checkpoint_layers = on
        torch.manual_seed(2)
        retention = torch.randn(2, 2, 3, 4, 6, dtype=torch.float64)
        state = RetNetState(retention, torch.tensor([4, 7]))
        bounds = torch.tensor([0, 4, 9], dtype=torch.int32) if packed else None
        ids = random_ids(*((1, 9) if packed else (2, 5)))
        loss = model(ids, state=state, cu_seqlens=bounds, labels=ids, form=form).loss
        with torch.no_grad():
            IN_PLACE[changed](model, state, bounds)
        if changed == "positions":
            loss.backward()
            found.append(gradients(model))
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
    if found:
        close(found[1], found[0])


@pytest.mark.parametrize("changed", ["hidden", "positions"])
def test_what_a_checkpointed_layer_takes_may_not_change(changed):
    for on in (False, True):
        model, found, ids = make_model(), {}, random_ids(2, 5)
        model.checkpoint_layers = on
        model.layers[0].register_forward_pre_hook(
            lambda layer, args, call, found=found: found.update(call, hidden=args[0]),
            with_kwargs=True,
        )
        loss = model(ids, labels=ids).loss
        with torch.no_grad():
            found[changed].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_checkpointed_layers_of_a_frozen_model():
    model = twin_of(make_model())
    model.checkpoint_layers = True
    ids = random_ids(2, 5)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("layers.1.ffn"))
    copy.deepcopy(model)(ids, labels=ids).loss.backward()
    model(ids, labels=ids).loss.backward()
    grads = gradients(model)
    assert all((grad is None) != name.startswith("layers.1.ffn") for name, grad in grads.items())
    with torch.no_grad():
        assert model(ids).logits.shape == (2, 5, 13)
    loss = model(ids, labels=ids).loss
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.autograd.grad(
            loss, model.layers.get_submodule("1").ffn.up_proj.weight, create_graph=True
        )
