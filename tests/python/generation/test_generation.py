# SPDX-License-Identifier: Apache-2.0
"""retnet.generation: greedy and sampled text, stop tokens, prompts of unequal length, errors."""

import itertools
import math

import pytest
import torch

import retnet.cpp
from retnet import generation
from retnet.generation import generate, stream
from support.cases.nn import make_model, random_ids

GREEDY = {"temperature": 0}


def unequal_prompts():
    ids = random_ids(3, 7)
    return [ids[0, :4], ids[1, :1], ids[2]]


def same(texts, others):
    return len(texts) == len(others) and all(map(torch.equal, texts, others))


def ranks(model, text, prompt):
    """Returns the rank of each new token by the logits of the whole text; 0 is the most likely."""
    order = model(text[None]).logits[0].argsort(-1, descending=True).argsort(-1)
    return order[prompt - 1 : -1].gather(-1, text[prompt:, None])


def test_greedy_text_is_the_argmax_of_the_whole():
    model = make_model()
    prompts = unequal_prompts()
    texts = generate(model, prompts, max_new_tokens=12, **GREEDY)
    for prompt, text in zip(prompts, texts, strict=True):
        assert text.shape == (len(prompt) + 12,) and text.dtype == torch.int64
        assert torch.equal(text[: len(prompt)], prompt)
        assert not ranks(model, text, len(prompt)).any()
        # A prompt gives the same text alone and beside another prompt of its length.
        for group in ([prompt], torch.stack([prompt, prompt]), [prompt.int()]):
            alone = generate(model, group, max_new_tokens=12, **GREEDY)
            assert same(alone, [text] * len(group))
    assert same(generate(model, prompts, max_new_tokens=0), prompts)


def test_seed_repeats_and_matters():
    model, prompts = make_model(), unequal_prompts()
    before = torch.get_rng_state()
    runs = [generate(model, prompts, max_new_tokens=30, seed=seed) for seed in (1, 1, 2)]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_top_k_top_p_and_temperature():
    model, prompt = make_model(), random_ids(2, 4)
    greedy = generate(model, prompt, max_new_tokens=10, **GREEDY)
    colds = [{"temperature": t} for t in (1e-4, 1e-42, 1e-300)]
    for sure in ({"top_k": 1}, {"top_p": 1e-9}, *colds):
        assert same(generate(model, prompt, max_new_tokens=10, seed=0, **sure), greedy)
    for text in generate(model, prompt, max_new_tokens=40, top_k=3, temperature=3.0, seed=0):
        assert ranks(model, text, 4).max() == 2


def test_top_p_draws_from_the_smallest_set_that_reaches_it():
    model = make_model()
    temperature, top_p = 3.0, 0.6
    for text in generate(
        model, random_ids(2, 4), max_new_tokens=200, temperature=temperature, top_p=top_p, seed=0
    ):
        probabilities = (model(text[None]).logits[0, 3:-1] / temperature).softmax(-1)
        seen = 0
        for row, token in zip(probabilities, text[4:], strict=True):
            likelier = row[row > row[token]].sum()
            assert likelier < top_p  # the set without the token does not reach it
            seen = max(seen, likelier.item())
        assert seen > top_p / 2  # and less likely ones are sampled too


def test_a_text_ends_with_its_first_stop_token():
    model, prompts = make_model(), unequal_prompts()
    free = generate(model, prompts, max_new_tokens=30, seed=0)
    stops = [int(free[0][len(prompts[0]) + 5]), 99]
    texts = generate(model, prompts, max_new_tokens=30, seed=0, stop_tokens=stops)
    for prompt, text, whole in zip(prompts, texts, free, strict=True):
        written = whole[len(prompt) :].tolist()
        end = written.index(stops[0]) + 1 if stops[0] in written else len(written)
        assert torch.equal(text, whole[: len(prompt) + end])
    # A stop token in the prompt ends nothing. When all texts have ended, nothing more is sampled.
    again = generate(model, [texts[0]], max_new_tokens=3, **GREEDY, stop_tokens=stops)
    assert len(again[0]) > len(texts[0])
    drawn = list(stream(model, prompts, max_new_tokens=30, **GREEDY, stop_tokens=range(13)))
    assert len(drawn) == 1 and drawn[0].shape == (3, 1)


# Logits that are not finite


def model_with_logits(change):
    """Returns a model that replaces the logits [.., vocab] of each call by `change(logits, calls
    before)`.
    """
    model, calls = make_model(), itertools.count()
    model.lm_head.register_forward_hook(lambda *args: change(args[2].clone(), next(calls)))
    return model


def set_logit(value, token=slice(None), first=0):
    """Returns a function that changes one logit, or all, from the call `first` on."""

    def change(logits, call):
        if call >= first:
            logits[..., token] = value
        return logits

    return change


NOT_FINITE = {
    "nan": (set_logit(math.nan, 3), "nan"),
    "all nan": (set_logit(math.nan), "nan"),
    "inf": (set_logit(math.inf, 3), "inf"),
    "all -inf": (set_logit(-math.inf), "-inf"),
    "later": (set_logit(math.nan, 3, first=4), "nan"),
}
WAYS = {"greedy": GREEDY, "drawn": {"seed": 0}, "top_k": {"top_k": 3}, "top_p": {"top_p": 0.5},
        "stop": {"stop_tokens": [99]}}  # fmt: skip


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("change, value", NOT_FINITE.values(), ids=NOT_FINITE)
def test_logits_that_are_not_finite(change, value, way):
    message = f"^generate: logits must be finite, got {value} for prompt 0; the weights may hold"
    with pytest.raises(ValueError, match=message):
        generate(model_with_logits(change), random_ids(2, 3), max_new_tokens=6, **way)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_prompt_is_named(way):
    """The error names the prompt, also in the C++ generate."""
    model = make_model()
    with torch.no_grad():
        model.embed_tokens.weight[5] = math.nan
    twin = retnet.cpp.RetNetForCausalLM(model.config, dtype=torch.float64)
    twin.load_state_dict(model.state_dict())
    prompts = torch.tensor([[1, 2, 3], [4, 6, 7], [1, 5, 2]])
    message = "^generate: logits must be finite, got nan for prompt 2; the weights may hold NaN"
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, max_new_tokens=1, **way)
    with pytest.raises(ValueError, match=message):
        twin.generate(prompts, max_new_tokens=1, **way)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_token_may_be_banned(way):
    model = model_with_logits(set_logit(-math.inf, slice(3, 12)))
    text = generate(model, random_ids(1, 3), max_new_tokens=30, **way)[0]
    assert set(text[3:].tolist()) <= {0, 1, 2, 12}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("first, given", [(0, 0), (1, 64), (70, 128), (129, 140)])
def test_checks_that_would_wait_come_seldom(first, given, way, monkeypatch):
    """As on CUDA, the first step and every 64th are checked at once, and the others by then."""
    monkeypatch.setattr(generation, "_is_synchronous", lambda device: False)
    if "stop_tokens" in way:
        given = first  # stop tokens wait at every step anyway
    model = model_with_logits(set_logit(math.nan, 3, first))
    tokens = stream(model, random_ids(1, 3), max_new_tokens=140, **way)
    assert len(list(itertools.islice(tokens, given))) == given
    with pytest.raises(ValueError, match="logits must be finite, got nan for prompt 0"):
        next(tokens)


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        ([], {}, "prompts must hold at least one prompt, got none"),
        (random_ids(2, 0), {}, r"prompts must have shape \[T\], T >= 1, got \[0\]"),
        ([random_ids(2, 3)], {}, r"prompts must have shape \[T\], T >= 1, got \[2, 3\]"),
        (random_ids(2, 3).float(), {}, "prompts must be int64 or int32, got torch.float32"),
        (random_ids(2, 3), {"seed": -1}, r"seed must be in 0..2\^64-1 or None, got -1"),
        (random_ids(2, 3), {"max_new_tokens": -1}, "max_new_tokens must be >= 0, got -1"),
        (random_ids(2, 3), {"temperature": -0.5}, "temperature must be >= 0, got -0.5"),
        (random_ids(2, 3), {"temperature": math.nan}, "temperature must be >= 0, got nan"),
        (random_ids(2, 3), {"top_k": 0}, "top_k must be >= 1 or None, got 0"),
        (random_ids(2, 3), {"top_p": 0.0}, r"top_p must be in \(0, 1\] or None, got 0.0"),
        (random_ids(2, 3), {"top_p": math.nan}, r"top_p must be in \(0, 1\] or None, got nan"),
    ],
)
def test_generate_error(prompts, options, message):
    with pytest.raises(ValueError, match=f"generate: {message}"):
        generate(make_model(), prompts, **{"max_new_tokens": 1, **options})
