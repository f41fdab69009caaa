# SPDX-License-Identifier: Apache-2.0
"""A model works inside DistributedDataParallel and FSDP, and on a sequence that is cut into
parts.
"""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import retnet
from retnet.ops import retention
from support.cases.nn import close, make_model, random_ids
from support.cases.retention import FORMS, make_inputs


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("head", ["one chunk", "chunks", "hooked"])
def test_data_parallel_gradients(one_process, head, monkeypatch):
    ids, plain, parallel = random_ids(2, 9), make_model(), make_model()
    if head != "one chunk":
        monkeypatch.setattr(retnet.nn.loss, "_LOGITS", 0)
        monkeypatch.setattr(retnet.nn.loss, "_TOKENS", 6)
    if head == "hooked":
        parallel.lm_head.register_forward_hook(lambda *call: None)
    plain(ids, labels=ids).loss.backward()
    DistributedDataParallel(parallel)(ids, labels=ids).loss.backward()
    for a, b in zip(parallel.parameters(), plain.parameters(), strict=True):
        close(a.grad, b.grad)


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_data_parallel_hooks(one_process, options, tied, checkpoint_layers, monkeypatch):
    """The hook of the head weight runs once for each backward pass, also under no_sync."""
    monkeypatch.setattr(retnet.nn.loss, "_LOGITS", 0)
    monkeypatch.setattr(retnet.nn.loss, "_TOKENS", 6)
    ids, plain, model = random_ids(2, 9), *(make_model(tie_embeddings=tied) for _ in range(2))
    model.checkpoint_layers = checkpoint_layers
    weight, seen = (model.embed_tokens if tied else model.lm_head).weight, []
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    parallel = DistributedDataParallel(model, **options)
    plain(ids, labels=ids).loss.backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    if not options:
        with parallel.no_sync():
            parallel(ids, labels=ids).loss.backward()
        expected = {name: 2 * grad for name, grad in expected.items()}
    parallel(ids, labels=ids).loss.backward()
    for name, p in model.named_parameters():
        close(p.grad, expected[name])
    assert len(seen) == (1 if options else 2)


@pytest.mark.parametrize("unit", ["model", "head", "norm and head", "hooked head"])
@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_fully_sharded_gradients(one_process, unit, checkpoint_layers, monkeypatch):
    """FSDP2 reduces the gradient of the head weight once, whatever unit the head belongs to. If the
    head is a unit of its own, the chunks remain: three, each called twice.
    """
    monkeypatch.setattr(retnet.nn.loss, "_LOGITS", 0)
    monkeypatch.setattr(retnet.nn.loss, "_TOKENS", 6)
    ids, plain, model = random_ids(2, 9), make_model(), make_model()
    plain(ids, labels=ids).loss.backward()
    model.checkpoint_layers = checkpoint_layers
    mesh, seen, calls = init_device_mesh("cpu", (1,)), [], []
    if unit != "model":
        forward = model.lm_head.forward
        model.lm_head.forward = lambda x: calls.append(x) or forward(x)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    if unit == "norm and head":
        fully_shard([model.norm, model.lm_head], mesh=mesh)
    elif unit != "model":
        fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if unit == "hooked head":
        model.lm_head.register_forward_hook(lambda module, args, out: None)
    weight = model.lm_head.weight
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.full_tensor()))
    model(ids, labels=ids).loss.backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        close(a.grad.full_tensor(), b.grad)
    assert len(seen) == 1
    assert len(calls) == {"model": 0, "head": 6, "norm and head": 1, "hooked head": 1}[unit]


def fsdp1(model, use_orig_params=False):
    half = torch.bfloat16
    mixed = MixedPrecision(param_dtype=half, reduce_dtype=half, buffer_dtype=half)
    device = torch.device("cpu")
    return FSDP(model, mixed_precision=mixed, device_id=device, use_orig_params=use_orig_params)


def fsdp1_with_names(model):
    return fsdp1(model, use_orig_params=True)


def fsdp2(model):
    mesh = dist.init_device_mesh("cpu", (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    return model


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("shard", [fsdp1, fsdp1_with_names, fsdp2], ids=lambda f: f.__name__)
def test_fully_sharded_in_bfloat16(one_process, shard, learnable, tmp_path):
    """The logits are those of the model in bfloat16, because constants stay float32. Saving raises
    an error that says what to do.
    """
    model, ids = make_model(torch.float32, learnable_decay=learnable), random_ids(2, 9)
    rounded = copy.deepcopy(model).bfloat16()
    for name, parameter in rounded.named_parameters():
        if name.endswith("log_decay_raw"):
            parameter.data = parameter.bfloat16().float()
    sharded = shard(copy.deepcopy(model))
    assert torch.equal(sharded(ids).logits, rounded(ids).logits)
    sharded(ids, labels=ids).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in sharded.parameters())
    if shard is not fsdp1_with_names:  # its parameters are whole in a group of one
        for save in (sharded.save, getattr(sharded, "module", sharded).save):
            with pytest.raises(ValueError, match=r"^[^\n]*: weights are sharded; .*[^\n]*$"):
                save(tmp_path)
        assert not list(tmp_path.iterdir())
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(sharded, options=options)
    retnet.checkpoint.write(tmp_path, model.config, state)
    assert torch.equal(retnet.load(tmp_path)(ids).logits, model(ids).logits)


def test_a_part_of_a_matrix_is_not_saved(one_process, tmp_path):
    """With use_orig_params, FSDP gives each of several processes the names of the parameters, but
    flat parts.
    """
    model = make_model()
    state = {name: tensor.flatten()[::2] for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="weights are sharded"):
        retnet.checkpoint.write(tmp_path, model.config, state)


@pytest.mark.parametrize("form", FORMS)
def test_state_of_one_part_is_initial_state_of_the_next(form):
    inputs = make_inputs(T=70)
    expected, expected_state = retention(**inputs, form=form)
    state, outs = inputs["initial_state"], []
    for part in (slice(0, 33), slice(33, 70)):
        tokens = {name: inputs[name][:, part] for name in "qkv"}
        out, state = retention(
            **tokens, log_decay=inputs["log_decay"], initial_state=state, form=form
        )
        outs.append(out)
    close(torch.cat(outs, 1), expected, 1e-12)
    close(state, expected_state, 1e-12)
