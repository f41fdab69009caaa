# SPDX-License-Identifier: Apache-2.0
"""A learnable decay works at every value of its parameter, and constants are right however a model
is made.
"""

import copy
import io
import math
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.swa_utils import AveragedModel

import retnet
import retnet.cpp
from retnet.nn import MultiScaleRetention, RetNetForCausalLM
from support.cases.nn import make_config, make_model, random_ids

KINDS = {"Python": retnet.nn.RetNetForCausalLM, "C++": retnet.cpp.RetNetForCausalLM}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def raws(model):
    """Returns the parameters of all layers, each [3]."""
    return [p for name, p in model.named_parameters() if name.endswith("retention.log_decay_raw")]


def retentions(model):
    return [m for name, m in model.named_modules() if name.endswith("retention")]


def random_twin(kind, **changes):
    source = make_model(torch.float32, learnable_decay=True, **changes)
    model = kind(source.config)
    model.load_state_dict(source.state_dict())
    return model


# The value and its gradient

INF = math.inf
LIMIT = 80.0


def expected_reference(configured):
    return {0.0: -(2.0**-10), -INF: -1.0}.get(configured, configured)


def expected_log_decay(configured, raw):
    if math.isnan(raw):
        return math.nan
    if abs(raw) >= LIMIT:
        return -INF if raw > 0 else 0.0
    return expected_reference(configured) * math.exp(raw)


GRADIENT = 0.3
RAWS = (0.0, 1.5, -3.0, 79.5, -79.5, 79.99, 80.0, -80.0, 1e30, -1e30, INF, -INF, math.nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("configured", [-0.03, 0.0, -700.0, -1e38, -1e-38, -1e-45, -1e308])
def test_every_raw_gives_an_ln_gamma_in_range_and_a_finite_gradient(configured, dtype):
    config = make_config(num_heads=len(RAWS), decay=(configured,) * len(RAWS), learnable_decay=True)
    layer = MultiScaleRetention(config)
    layer.log_decay_raw = torch.nn.Parameter(torch.tensor(RAWS, dtype=dtype))
    log_decay = layer.log_decay
    assert log_decay.dtype == torch.float32
    # The operator gives 0 where gamma is 0. 0.3 times the smallest float32 would be 0 in float32.
    log_decay.backward(torch.where(log_decay == -INF, 0.0, GRADIENT))
    rounded = torch.tensor(configured).item()  # as the configuration gives it
    for raw, value, grad in zip(
        layer.log_decay_raw.tolist(), log_decay.tolist(), layer.log_decay_raw.grad.tolist(),
        strict=True,
    ):  # fmt: skip
        want = expected_log_decay(rounded, raw)
        if math.isnan(want):
            assert math.isnan(value)
            continue
        assert value <= 0 and math.isfinite(grad)
        want32 = torch.tensor(want).item()
        assert value == pytest.approx(want32, rel=2e-7, abs=1e-45)
        slope = 0.0 if abs(raw) >= LIMIT or value == -INF else GRADIENT * want32
        exact = dtype == torch.float32
        assert grad == pytest.approx(
            slope, rel=1e-6 if exact else 1e-2, abs=1e-45 if exact else 1e-40
        )
        if abs(raw) >= LIMIT:
            assert grad == 0


@each_kind
@pytest.mark.parametrize("decay", ["power2", "linspace", (-0.5, 0.0, -1e308)], ids=str)
def test_the_initial_decay_is_the_configuration_s_bit_by_bit(kind, decay):
    """The logits are those of the model whose decay is not learnable."""
    ids, logits = random_ids(2, 20), []
    for learnable in (False, True):
        torch.manual_seed(0)
        model = kind(make_config(decay=decay, learnable_decay=learnable))
        for retention in retentions(model):
            assert torch.equal(retention.log_decay, model.config.log_decay())
        logits.append(model(ids).logits)
    assert torch.equal(*logits)
    for raw in raws(model):
        assert raw.tolist() == ([0, -LIMIT, LIMIT] if decay[0] == -0.5 else [0, 0, 0])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e9, momentum=0.9)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=5.0, weight_decay=1.0)


def ascent(parameters):
    return torch.optim.SGD(parameters, lr=1e38, maximize=True)


@pytest.mark.parametrize("optimizer", [sgd, adamw, ascent], ids=lambda make: make.__name__)
@each_kind
def test_no_optimizer_leaves_the_range(kind, optimizer, tmp_path):
    model, ids = random_twin(kind, decay=(-0.5, -0.1, -2.0)), random_ids(2, 9)
    steps, mean = optimizer(raws(model)), AveragedModel(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(8):
        scaler.scale(model(ids, labels=ids).loss).backward()
        scaler.unscale_(steps)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert all(raw.grad.isfinite().all() for raw in raws(model))
        scaler.step(steps)
        scaler.update()
        model.zero_grad()
        mean.update_parameters(model)
    assert model(ids).logits.isfinite().all()
    assert all((retention.log_decay <= 0).all() for retention in retentions(model))
    model.save(tmp_path)
    assert torch.equal(retnet.load(tmp_path)(ids).logits, model(ids).logits)


def test_an_average_of_an_end_and_a_value_is_a_value():
    model = random_twin(RetNetForCausalLM, decay=(-0.5, 0.0, -1e308))
    mean = AveragedModel(model, avg_fn=lambda old, new, count: torch.lerp(old, new, 0.5))
    mean.update_parameters(model)
    with torch.no_grad():
        for raw in raws(model):
            raw.fill_(1.0)
    mean.update_parameters(model)
    for raw in raws(mean.module):
        assert raw.isfinite().all() and raw[1] < 0 < raw[2]
    assert mean(random_ids(1, 5)).logits.isfinite().all()


@each_kind
@pytest.mark.parametrize("form", ["chunkwise", "parallel", "recurrent"])
@pytest.mark.parametrize("decay_norm", [False, True])
def test_gradients_at_both_ends_and_next_to_them(kind, form, decay_norm):
    """ln gamma is -inf, 0, -1e-38, -1e-10, -1e30, -0.1, and -inf by overflow."""
    decay = (-0.5, -0.5, -1e-38, -1e-10, -1e30, -0.1, -1e38)
    config = make_config(
        num_heads=7, decay=decay, decay_norm=decay_norm, learnable_decay=True, num_layers=1
    )
    torch.manual_seed(0)
    model, ids = kind(config), random_ids(2, 9)
    (raw,) = raws(model)
    with torch.no_grad():
        raw.copy_(torch.tensor([LIMIT, -LIMIT, 0, 0, 0, 0, 9]))
    model(ids, labels=ids, form=form).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert raw.grad[[0, 1, 4, 6]].tolist() == [0, 0, 0, 0]
    assert raw.grad[2:4].abs().max() < 1e-9 < 1e-7 < raw.grad[5].abs()


def test_nan_is_not_taken_for_an_end():
    model = random_twin(RetNetForCausalLM)
    with torch.no_grad():
        raws(model)[0][1] = math.nan
    with pytest.raises(RuntimeError, match=r"log_decay must lie in \[-inf, 0\], got nan in head 1"):
        model(random_ids(1, 3))


# State dicts of older versions

OLD = {
    "trained": [-0.031, -3.7, -1e-4],
    "ends": [-INF, 0.0, -0.0],
    "next to the ends": [-3e38, -1e-45, -1e-30],
    "close to the initial": [-0.499, -0.0997, -0.001],
    "initial": None,
}


def old_state(state, values):
    """Returns a state dict whose layers hold ln gamma under the key of older versions."""
    raw = "retention.log_decay_raw"
    return {
        name.removesuffix("_raw") if name.endswith(raw) else name: torch.tensor(values)
        if name.endswith(raw)
        else tensor
        for name, tensor in state.items()
    }


@each_kind
@pytest.mark.parametrize("values", OLD.values(), ids=OLD)
@pytest.mark.parametrize("decay", [(-0.5, -0.1, 0.0), (-1e308, -1.0, -1.0)], ids=str)
def test_an_old_state_dict_is_converted(kind, values, decay):
    model = random_twin(kind, decay=decay)
    values = model.config.log_decay().tolist() if values is None else values
    keys = set(model.state_dict())
    model.load_state_dict(old_state(model.state_dict(), values))
    assert set(model.state_dict()) == keys
    for retention in retentions(model):
        for raw, got, want, configured in zip(
            retention.log_decay_raw.tolist(), retention.log_decay.tolist(), values,
            model.config.log_decay().tolist(), strict=True,
        ):  # fmt: skip
            want = torch.tensor(want).item()
            if want == 0 or math.isinf(want):
                assert got == want and abs(raw) == LIMIT
            else:
                exact = math.log(want / expected_reference(configured))
                # never an end of the range, not even in bfloat16
                assert raw == torch.tensor(max(-79.5, min(exact, 79.5))).item()
                limited = abs(raw) == 79.5
                assert limited or got == pytest.approx(want, rel=2.0**-23 * (1 + abs(raw)))


@each_kind
@pytest.mark.parametrize("value", [1e-6, math.nan, INF])
def test_an_old_state_dict_beyond_the_range_is_refused(kind, value):
    model = random_twin(kind)
    message = rf"^layers.0.retention.log_decay must lie in \[-inf, 0\], got {value:g} in head 2$"
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(old_state(model.state_dict(), [-1.0, -1.0, value]))


@each_kind
def test_other_state_dicts_are_torch_s_to_refuse(kind):
    model = random_twin(kind)
    old = old_state(model.state_dict(), [-1.0, -1.0, -1.0])
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layers.0.retention.log_decay\""):
        model.load_state_dict({**old, **model.state_dict()})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layers.0.retention.log_decay\""):
        kind(make_config()).load_state_dict(old)
    with pytest.raises(RuntimeError, match=r"size mismatch for layers.0.retention.log_decay_raw"):
        model.load_state_dict(old_state(model.state_dict(), [-1.0, -1.0]))
    del old["layers.0.retention.log_decay"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layers.0.retention.log_decay_raw"):
        model.load_state_dict(old)


# Constants


def from_meta_context(model):
    with torch.device("meta"):
        made = RetNetForCausalLM(model.config)
    return made.to_empty(device="cpu")


def from_assigned(model):
    made = RetNetForCausalLM(model.config, device="meta")
    made.load_state_dict(model.state_dict(), assign=True)
    return made


def from_filled(model):
    """Makes a model as accelerate does: each tensor is set by itself, and buffers start as
    garbage.
    """
    made = RetNetForCausalLM(model.config, device="meta")
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        path, _, leaf = name.rpartition(".")
        module = made.get_submodule(path)
        if leaf in module._buffers:
            module._buffers[leaf] = torch.full(tensor.shape, math.nan)
        else:
            module._parameters[leaf] = torch.nn.Parameter(torch.empty(tensor.shape))
    return made


def from_fake(model):
    with FakeTensorMode():
        made = RetNetForCausalLM(model.config)
        hidden = made(torch.zeros(1, 4, dtype=torch.int64)).logits
        assert isinstance(hidden, FakeTensor)
    return from_assigned(made)


def from_inference(model):
    with torch.inference_mode():
        made = RetNetForCausalLM(model.config)
        made(random_ids(1, 4))
    return copy.deepcopy(made)


def from_first_call_in_inference_mode(model):
    made = from_filled(model)
    made.load_state_dict(model.state_dict())
    with torch.inference_mode():
        made(random_ids(1, 4))
    return made


def from_other_dtypes(model):
    torch.set_default_dtype(torch.float64)
    try:
        made = RetNetForCausalLM(model.config, dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    return made.to(torch.bfloat16).to(torch.float16).float()


def from_pickle(model):
    file = io.BytesIO()
    torch.save(pickle.loads(pickle.dumps(copy.deepcopy(model))), file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=False)


WAYS = [
    from_meta_context,
    from_assigned,
    from_filled,
    from_fake,
    from_inference,
    from_first_call_in_inference_mode,
    from_other_dtypes,
    from_pickle,
]


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_constants_are_right_however_a_model_is_made(way, learnable):
    model, ids = make_model(torch.float32, learnable_decay=learnable), random_ids(2, 9)
    made = way(model)
    made.load_state_dict(model.state_dict(), assign=way is from_fake)
    made.requires_grad_(True).train()
    assert not list(made.named_buffers())
    for retention in retentions(made):
        assert torch.equal(retention.frequencies, model.config.rotary_frequencies())
        assert torch.equal(retention.log_decay, retentions(model)[0].log_decay) or learnable
    assert torch.equal(made(ids).logits, model(ids).logits)
    loss = made(ids, labels=ids).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in made.parameters())


def test_constants_follow_the_device():
    model = RetNetForCausalLM(make_config(learnable_decay=True)).to("meta")
    (first, _) = retentions(model)
    assert first.frequencies.is_meta and first.log_decay.is_meta
    assert model(torch.zeros(1, 3, dtype=torch.int64, device="meta")).logits.is_meta
    file = io.BytesIO()
    torch.save(RetNetForCausalLM(make_config()), file)
    file.seek(0)
    moved = torch.load(file, map_location="meta", weights_only=False)
    assert retentions(moved)[0].frequencies.is_meta and retentions(moved)[0].log_decay.is_meta
    moved.to_empty(device="cpu")
    assert torch.equal(retentions(moved)[0].frequencies, model.config.rotary_frequencies())
    with torch.device("meta"):
        assert model.config.log_decay().device.type == "cpu"
        assert model.config.rotary_frequencies().device.type == "cpu"


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_the_first_call_makes_no_constants(learnable, moved, monkeypatch):
    """Otherwise a CUDA graph could not record it."""
    model = make_model(torch.float32, learnable_decay=learnable)
    if moved:
        weights = model.state_dict()
        model = RetNetForCausalLM(model.config, device="meta").to_empty(device="cpu")
        model.load_state_dict(weights)
    for name in ("log_decay", "rotary_frequencies"):
        monkeypatch.setattr(retnet.RetNetConfig, name, None)
    assert model(random_ids(1, 3)).logits.isfinite().all()


@pytest.mark.not_poisoned
@pytest.mark.parametrize("warm, learnable", [(False, False), (True, True)], ids=["cold", "warm"])
def test_constants_in_graphs(warm, learnable, tmp_path):
    """The constants survive compile, export (strict or not), save and load, before and after the
    first eager call.
    """
    model = make_model(torch.float32, learnable_decay=learnable, num_layers=1).eval()
    ids = random_ids(2, 9)
    expected = model(ids).logits

    def forget():
        if not warm:
            retentions(model)[0]._constants._made.clear()

    for strict in (False, True):
        forget()
        program = torch.export.export(model, (ids,), strict=strict)
        torch.export.save(program, tmp_path / "model.pt2")
        exported = torch.export.load(tmp_path / "model.pt2").module()
        torch.testing.assert_close(exported(ids).logits, expected)
        assert torch.equal(model(ids).logits, expected)
    forget()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids).logits, expected)
    assert torch.equal(model(ids).logits, expected)
    made = retentions(model)[0]._constants._made.values()
    assert made and all(type(value) is torch.Tensor for value in made)
