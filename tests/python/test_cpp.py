# SPDX-License-Identifier: Apache-2.0
"""retnet.cpp: the C++ modules have the numbers of their Python twins and act as torch modules."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from torch import nn

import retnet
import retnet.cpp as cpp
import retnet.nn as twins
from cases_nn import VARIANTS, close, each_variant, make_config, make_model, random_ids
from retnet.generation import generate
from retnet.state import RetNetState


def twin_of(model, dtype=torch.float64):
    """The C++ model with the weights of a Python model."""
    made = cpp.RetNetForCausalLM(model.config, dtype=dtype)
    made.load_state_dict(model.state_dict())
    return made


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters()}


def same(actual, expected):
    """Bit by bit: both run the same operators in the same order."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@each_variant
def test_same_keys_and_initial_weights(changes):
    """The same entries in the same order, and from one seed the same weights."""
    config = make_config(**changes)
    for reset in (False, True):
        weights = []
        for kind in (twins.RetNetForCausalLM, cpp.RetNetForCausalLM):
            torch.manual_seed(3)
            model = kind(config)
            if reset:
                model.reset_parameters()
            weights.append(model.state_dict())
            assert list(dict(model.named_parameters())) == list(weights[-1])
        assert list(weights[0]) == list(weights[1])
        same(dict(weights[1]), dict(weights[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each_variant
def test_same_numbers_and_gradients(changes, dtype):
    model = make_model(dtype, **changes)
    other = twin_of(model, dtype)
    ids = random_ids(2, 7)
    for form in ("chunkwise", "parallel", "recurrent"):
        for labels in (None, ids):
            a = model(ids, labels=labels, form=form)
            b = other(ids, labels=labels, form=form)
            same(tuple(b.state), tuple(a.state))
            if labels is None:
                same(b.logits, a.logits)
                assert a.loss is b.loss is None
            else:
                assert a.logits is b.logits is None
        same(b.loss, a.loss)
        (a.loss + a.state.retention.square().mean()).backward()
        (b.loss + b.state.retention.square().mean()).backward()
        same(gradients(other), gradients(model))
        model.zero_grad()
        other.zero_grad()


@pytest.mark.parametrize(
    "dtype, tied, reduction", [(torch.float32, True, "mean"), (torch.bfloat16, False, "sum")]
)
def test_same_loss_in_chunks(dtype, tied, reduction):
    """1026 tokens over 33,000 classes are two chunks."""
    model = make_model(dtype, vocab_size=33_000, tie_embeddings=tied, num_layers=1)
    other, ids = twin_of(model, dtype), random_ids(2, 513)
    a, b = (m(ids, targets=ids, reduction=reduction).loss for m in (model, other))
    same(b, a)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.autograd.grad(b, list(other.parameters()), create_graph=True)
    a.backward()
    b.backward()
    same(gradients(other), gradients(model))


@each_variant
def test_same_decoding(changes):
    model = make_model(**changes)
    other = twin_of(model)
    prompt = random_ids(2, 5)
    with torch.no_grad():
        a, b = model(prompt), other(prompt)
        step = prompt[:, :1]
        same(other(step, state=b.state).logits, model(step, state=a.state).logits)
        before = b.state.fork()
        other(step, state=b.state)
        assert torch.equal(before.retention, b.state.retention)  # a copy was updated
        other(step, state=b.state, inplace=True)
        assert not torch.equal(before.retention, b.state.retention)


GENERATE = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 2.0, "top_k": 9, "top_p": 0.8, "seed": 7},
    "stopped": {"seed": 1, "stop_tokens": [3, 5]},
}


@pytest.mark.parametrize("options", GENERATE.values(), ids=GENERATE.keys())
def test_same_text(options):
    model = make_model()
    other = twin_of(model)
    ids = random_ids(3, 6)
    for prompts in (ids, [ids[0, :4], ids[1, :1], ids[2]]):
        texts = generate(model, prompts, max_new_tokens=20, **options)
        same(other.generate(prompts, max_new_tokens=20, **options), texts)
    with pytest.raises(ValueError, match="generate: max_new_tokens must be >= 0, got -1"):
        other.generate(ids, max_new_tokens=-1)


@torch.no_grad()
def test_logits_of_the_last_token_only():
    model = make_model()
    ids, bounds = random_ids(2, 7), torch.tensor([0, 3, 7], dtype=torch.int32)
    for module in (model, twin_of(model)):
        whole = module(ids)
        last = module(ids, last_only=True)
        same(last.state, whole.state)
        close(last.logits, whole.logits[:, -1:])
        packed = module(ids[:1], cu_seqlens=bounds)
        close(
            module(ids[:1], cu_seqlens=bounds, last_only=True).logits,
            packed.logits[:, [2, 6]],
        )
        with pytest.raises(ValueError, match="only one of labels, targets and last_only"):
            module(ids, labels=ids, last_only=True)
        assert module(ids[:0], last_only=True).logits.shape == (0, 1, 13)
        with pytest.raises(ValueError, match=r"T >= 1 tokens with last_only, got \[2, 0\]"):
            module(ids[:, :0], last_only=True)
        for cuts, sequence in (
            ([0, 0, 4, 7], 0), ([0, 3, 3, 7], 1), ([0, 3, 7, 7], 2), ([0, 3, 3, 3, 7], 1)
        ):  # fmt: skip
            empty = torch.tensor(cuts, dtype=torch.int32)
            with pytest.raises(
                ValueError, match=f"no empty .* got sequence {sequence} of length 0"
            ):
                module(ids[:1], cu_seqlens=empty, last_only=True)


@pytest.mark.parametrize("kind", ["C++", "Python"])
def test_logits_of_an_empty_sequence_on_a_gpu(kind, gpu):
    """NaN, as to look at the bounds would wait for the device."""
    model, ids = make_model(), random_ids(1, 7).to(gpu)
    model = (model if kind == "Python" else twin_of(model)).to(gpu)
    bounds = torch.tensor([0, 0, 3, 3, 7, 7], dtype=torch.int32, device=gpu)
    logits = model(ids, cu_seqlens=bounds, last_only=True).logits[0]
    assert logits[[0, 2, 4]].isnan().all()
    close(logits[[1, 3]], model(ids, cu_seqlens=bounds).logits[0, [2, 6]])
    logits[[1, 3]].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["C++", "Python"])
@pytest.mark.parametrize("shape", [(2, 0), (0, 5), (0, 0), "packed"], ids=str)
def test_the_loss_without_a_token(kind, shape):
    """NaN, or as a sum 0, with gradients of 0, as F.cross_entropy; labels are targets here."""
    model = make_model() if kind == "Python" else twin_of(make_model())
    packed = torch.zeros(3, dtype=torch.int32) if shape == "packed" else None
    ids = torch.zeros((1, 0) if shape == "packed" else shape, dtype=torch.int64)
    for scored in ("labels", "targets"):
        output = model(ids, cu_seqlens=packed, **{scored: ids})
        assert (
            output.loss.isnan() and output.state.positions.eq(0 if 0 in ids.shape[1:] else 5).all()
        )
        assert model(ids, cu_seqlens=packed, **{scored: ids}, reduction="sum").loss == 0
        output.loss.backward()
        assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_packed():
    model = make_model()
    ids, bounds = random_ids(1, 9), torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    other = twin_of(model)
    a = model(ids, cu_seqlens=bounds, labels=ids)
    b = other(ids, cu_seqlens=bounds, labels=ids)
    same(other(ids, cu_seqlens=bounds).logits, model(ids, cu_seqlens=bounds).logits)
    same(b.loss, a.loss)
    same(b.state.positions, a.state.positions)


@pytest.mark.parametrize("name", ["FeedForward", "MultiScaleRetention", "DecoderLayer", "RetNet"])
def test_the_other_modules(name):
    torch.manual_seed(0)
    config = make_config(group_norm_affine=True)
    twin = getattr(twins, name)(config, dtype=torch.float64)
    module = getattr(cpp, name)(config, dtype=torch.float64)
    module.load_state_dict(twin.state_dict())
    x = random_ids(2, 5) if name == "RetNet" else torch.randn(2, 5, 12, dtype=torch.float64)
    a, b = twin(x), module(x)
    if name == "FeedForward":
        return close(a, b)
    close(a[0], b[0])
    if name == "RetNet":
        return close(a[1].retention, b[1].retention)
    close(a[1], b[1])
    later = {"state": a[1], "positions": torch.arange(5, 10)}
    close(twin(x, **later)[0], module(x, **later)[0])


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_layer_norm(norm):
    module = cpp.LayerNorm(make_config(norm=norm, norm_eps=1e-3), dtype=torch.float64)
    with torch.no_grad():
        module.weight.normal_()
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    if norm == "layer":
        close(module(x), nn.functional.layer_norm(x, (12,), module.weight, module.bias, 1e-3))
    else:
        close(module(x), nn.functional.rms_norm(x, (12,), module.weight, 1e-3))


def test_training_with_adamw():
    model = make_model()
    other = twin_of(model)
    ids = random_ids(4, 6)
    losses = {}
    for module in (model, other):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        losses[module] = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = module(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            losses[module].append(loss.detach())
    close(torch.stack(losses[model]), torch.stack(losses[other]))
    assert losses[other][-1] < losses[other][0]


def odd_models():
    """A double, an eval, a partly frozen and a tied model."""
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
    with pytest.raises(RuntimeError, match="must be copied before what refers to its parameters"):
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


@pytest.mark.parametrize("kind", ["C++", "Python"])
def test_parameter_hooks_with_checkpointed_layers(kind):
    """Each runs once, and what it returns becomes the gradient."""
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


def test_checkpointing_by_torch():
    ids = random_ids(2, 6)
    plain, recomputed = twin_of(make_model()), twin_of(make_model())
    plain(ids, labels=ids).loss.backward()
    torch.utils.checkpoint.checkpoint(
        lambda x: recomputed(x, labels=x).loss, ids, use_reentrant=False
    ).backward()
    same(gradients(recomputed), gradients(plain))


def saved_bytes(model, ids, **call):
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
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
    """The same gradients as without, for less memory; the state's gradients too."""
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
    # log_decay enters twice: what it gets is summed in another order.
    torch.testing.assert_close(gradients_of[1], gradients_of[0], rtol=1e-5, atol=1e-6)
    assert all(grad is not None and grad.any() for grad in gradients_of[1].values())
    assert kept[1] < 0.5 * kept[0]


IN_PLACE = {
    "state": lambda model, state, bounds: state.retention.mul_(2),
    "state of a layer": lambda model, state, bounds: state.retention[1].mul_(2),
    "weight": lambda model, *_: model.get_parameter("layers.0.ffn.up_proj.weight").mul_(2),
    "bias of a norm": lambda model, *_: model.get_parameter("layers.1.ffn_norm.bias").mul_(2),
    # Each call makes its tokens' positions of these anew.
    "positions": lambda model, state, bounds: state.positions.add_(1),
    "cu_seqlens": lambda model, state, bounds: bounds.sub_(1).clamp_(min=0),
}


@pytest.mark.parametrize("kind", ["C++", "Python"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["chunkwise", "parallel", "recurrent"])
@pytest.mark.parametrize("changed", IN_PLACE)
def test_a_change_in_place_is_seen_by_checkpointed_layers(kind, packed, form, changed):
    """It raises as without, or does as little harm."""
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


def test_bad_arguments():
    model = twin_of(make_model())
    with pytest.raises(ValueError, match="input_ids"):
        model(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="state"):
        model(random_ids(1, 2), state=RetNetState(torch.zeros(1), torch.zeros(1)))
    with pytest.raises(RuntimeError, match="form"):
        model(random_ids(1, 2), form="fast")
    ids = random_ids(1, 2)
    with pytest.raises(ValueError, match="labels must be int64, got Int"):
        model(ids, labels=ids.int())
    with pytest.raises(ValueError, match=r"targets must have the shape of input_ids, \[1, 2\]"):
        model(ids, targets=ids[0])
    with pytest.raises(ValueError, match='reduction must be "mean" or "sum", got "none"'):
        model(ids, targets=ids, reduction="none")


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


def test_every_variant_is_tested():
    fields = {name for changes in VARIANTS.values() for name in changes}
    sizes = {
        "vocab_size",
        "embed_dim",
        "num_layers",
        "num_heads",
        "key_dim",
        "value_dim",
        "ffn_dim",
    }
    assert fields | sizes == set(make_config().__dataclass_fields__)
