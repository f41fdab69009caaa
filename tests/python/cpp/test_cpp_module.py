# SPDX-License-Identifier: Apache-2.0
"""C++ modules act as torch modules: copies, modes, hooks, replaced parts, and DDP."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from torch import nn

import retnet
import retnet.cpp as cpp
from support.cases.cpp import gradients, same, twin_of
from support.cases.nn import close, make_config, make_model, random_ids


def odd_models():
    """Returns a double model, one in eval mode, a partly frozen one and one with a tied head."""
    frozen = twin_of(make_model())
    frozen.embed_tokens.requires_grad_(False)
    yield twin_of(make_model())
    yield twin_of(make_model()).float().eval()
    yield frozen
    yield twin_of(make_model(tie_embeddings=True, learnable_decay=True))


def saved_and_loaded(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_copies_of_an_extended_model(copied):
    model = twin_of(make_model())
    model.value_head = nn.Linear(13, 1).double()
    model.scale = nn.Parameter(torch.ones(3))
    model.checkpoint_layers = True
    other = copied(model.eval())
    same(dict(other.state_dict()), dict(model.state_dict()))
    assert other.checkpoint_layers and not any(module.training for module in other.modules())
    assert other.scale is not model.scale and other.value_head is not model.value_head
    assert other(random_ids(1, 4)).logits.shape == (1, 4, 13)


def test_a_copied_optimizer_trains_the_copied_model():
    model = twin_of(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other, copied = copy.deepcopy((model, optimizer))
    before = [p.detach().clone() for p in other.parameters()]
    ids = random_ids(1, 4)
    other(ids, labels=ids).loss.backward()
    copied.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="must be copied before any object that refers"):
        copy.deepcopy((optimizer, model))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, saved_and_loaded, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_copies(copied):
    ids = random_ids(2, 5)
    for model in odd_models():
        other = copied(model)
        assert type(other) is type(model) and other.training == model.training
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype
            assert a.requires_grad == b.requires_grad and a.data_ptr() != b.data_ptr()
        assert torch.equal(model(ids).logits, other(ids).logits)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(0.5)
        assert not torch.equal(model(ids).logits, other(ids).logits)


def test_saved_models_are_loaded_as_their_twins(tmp_path):
    ids = random_ids(2, 5)
    for number, model in enumerate(odd_models()):
        model.save(tmp_path / str(number))
        twin = retnet.load(tmp_path / str(number))
        same(dict(twin.state_dict()), dict(model.state_dict()))
        same(twin(ids).logits, model(ids).logits)


def test_to_apply_and_modes():
    model = twin_of(make_model())
    ids = random_ids(1, 4)
    half = model.to(torch.bfloat16)
    assert half is model and model(ids).logits.dtype == torch.bfloat16
    assert model.eval() is model and not model.training and model.train().training
    seen = []
    model.apply(lambda module: seen.append(type(module).__name__))
    assert seen[-1] == "RetNetForCausalLM" and len(seen) > 10
    learnable = cpp.RetNetForCausalLM(make_config(learnable_decay=True)).to(torch.bfloat16)
    assert {p.dtype for n, p in learnable.named_parameters() if "log_decay" in n} == {torch.float32}
    for module in (learnable, learnable.get_submodule("layers")):
        learnable.zero_grad()
        learnable(ids, labels=ids).loss.backward()
        module.double()
        decay = learnable.get_parameter("layers.0.retention.log_decay_raw")
        assert decay.dtype == decay.grad.dtype == torch.float32
        learnable.bfloat16()
    with torch.no_grad():
        model.double()
        for parameter in model.parameters():
            parameter.zero_()
    assert (model(ids).logits == 0).all()


def test_parameter_and_forward_hooks():
    model = twin_of(make_model())
    ids, calls = random_ids(1, 4), []
    model.embed_tokens.weight.register_hook(lambda grad: calls.append("parameter"))
    model.register_forward_pre_hook(lambda module, args: calls.append("before"))
    model.register_forward_hook(lambda module, args, out: calls.append("after"))
    model(ids, labels=ids).loss.backward()
    assert calls == ["before", "after", "parameter"]
    for kind in ("forward", "forward_pre", "backward", "full_backward", "full_backward_pre"):
        with pytest.raises(RuntimeError, match=r"hook of a child would never fire"):
            getattr(model.embed_tokens, f"register_{kind}_hook")(lambda *args: None)
    with pytest.raises(RuntimeError, match="a child's forward would never be called"):
        model.embed_tokens.forward = lambda ids: ids


@pytest.mark.parametrize("replace", ["assignment", "assign", "functional", "to_empty", "meta"])
def test_a_replaced_parameter_raises(replace):
    model = twin_of(make_model())
    ids = random_ids(1, 4)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match=r"parameter .*weight was replaced by another object"):
        if replace == "assignment":
            model.layers.get_submodule("1").ffn.up_proj.weight = nn.Parameter(torch.zeros(10, 12))
        elif replace == "assign":
            model.load_state_dict(values, assign=True)
        elif replace == "functional":
            torch.func.functional_call(model, values, (ids,))
        elif replace == "to_empty":
            model.to_empty(device="meta")
        else:
            model.to("meta")
        model(ids)


@pytest.mark.parametrize("replace", ["child", "tied", "removed", "replica", "inner"])
def test_a_replaced_child_raises(replace):
    model = twin_of(make_model())
    if replace == "child":
        model.lm_head = nn.Linear(12, 13, bias=False)
    elif replace == "tied":
        model.lm_head = model.embed_tokens
    elif replace == "removed":
        del model.lm_head
    elif replace == "replica":
        model = model._replicate_for_data_parallel()
        model.lm_head = model.lm_head._replicate_for_data_parallel()
    else:
        model.layers.get_submodule("1").ffn = nn.Identity()
    with pytest.raises(
        RuntimeError, match=r"(module|parameter) \S+ was replaced by another object"
    ):
        model(random_ids(1, 4))


def train_rank(rank, folder, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = nn.parallel.DistributedDataParallel(twin_of(make_model()))
    ids = random_ids(4, 6)[2 * rank : 2 * rank + 2]
    model(ids, labels=ids).loss.backward()
    results[rank] = {k.removeprefix("module."): v.numpy() for k, v in gradients(model).items()}
    torch.distributed.destroy_process_group()


def test_ddp_over_two_processes(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        ranks = [context.Process(target=train_rank, args=(r, tmp_path, results)) for r in (0, 1)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
        results = dict(results)
    model, ids = make_model(), random_ids(4, 6)
    model(ids, labels=ids).loss.backward()
    for name, grad in gradients(model).items():
        for rank in (0, 1):
            close(torch.from_numpy(results[rank][name]), grad)
