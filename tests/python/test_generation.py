# SPDX-License-Identifier: Apache-2.0
"""retnet.generation: greedy text, sampling, errors."""

import math

import pytest
import torch

from cases_nn import make_model, random_ids
from retnet.generation import generate


def test_greedy_text_is_the_argmax_of_the_whole():
    model = make_model()
    ids = generate(model, random_ids(3, 4), max_new_tokens=12, temperature=0)
    assert ids.shape == (3, 16) and torch.equal(ids[:, :4], random_ids(3, 4))
    assert torch.equal(model(ids).logits.argmax(-1)[:, 3:-1], ids[:, 4:])


def test_seed_repeats_and_matters():
    model = make_model()
    prompt = random_ids(2, 1)
    runs = [generate(model, prompt, max_new_tokens=30, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_top_k_and_temperature():
    model = make_model()
    prompt = random_ids(2, 4)
    greedy = generate(model, prompt, max_new_tokens=10, temperature=0)
    assert torch.equal(generate(model, prompt, max_new_tokens=10, top_k=1, seed=0), greedy)
    cold = generate(model, prompt, max_new_tokens=10, temperature=1e-4, seed=0)
    assert torch.equal(cold, greedy)
    some = generate(model, prompt, max_new_tokens=40, top_k=3, temperature=3.0, seed=0)
    ranks = model(some).logits.argsort(-1, descending=True).argsort(-1)
    rank = ranks[:, 3:-1].gather(-1, some[:, 4:, None])
    assert rank.max() == 2
    assert torch.equal(generate(model, prompt, max_new_tokens=0), prompt)


@pytest.mark.parametrize(
    "prompt, options, message",
    [
        ((2, 0), {}, r"input_ids must have shape \[B, T\], T >= 1, got \[2, 0\]"),
        ((2, 3), {"max_new_tokens": -1}, "max_new_tokens must be >= 0, got -1"),
        ((2, 3), {"temperature": -0.5}, "temperature must be >= 0, got -0.5"),
        ((2, 3), {"temperature": math.nan}, "temperature must be >= 0, got nan"),
        ((2, 3), {"top_k": 0}, "top_k must be >= 1 or None, got 0"),
    ],
)
def test_generate_error(prompt, options, message):
    with pytest.raises(ValueError, match=f"generate: {message}"):
        generate(make_model(), random_ids(*prompt), **{"max_new_tokens": 1, **options})
