# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy refuses wrong arguments."""

import pytest
import torch

from retnet.nn import linear_cross_entropy
from support.cases.nn import make_model, random_ids

V, D = 17, 8

ERRORS = {
    "hidden": (
        lambda: linear_cross_entropy(torch.zeros(3, D), torch.zeros(V, D), torch.zeros(3), V),
        r"hidden must have shape \[B, T, d\], got \[3, 8\]",
    ),
    "targets": (
        lambda: linear_cross_entropy(torch.zeros(1, 3, D), torch.zeros(V, D), torch.zeros(3), V),
        r"targets must have the shape of hidden's tokens, \[1, 3\], got \[3\]",
    ),
    "dtype": (
        lambda: linear_cross_entropy(torch.zeros(1, 3, D), torch.zeros(V, D), torch.zeros(1, 3), V),
        "targets must be torch.int64, got torch.float32",
    ),
    "reduction": (
        lambda: linear_cross_entropy(
            torch.zeros(1, 3, D), torch.zeros(V, D), random_ids(1, 3), V, reduction="none"
        ),
        'reduction must be "mean" or "sum", got .none',
    ),
    "labels": (
        lambda: make_model()(random_ids(1, 3), labels=random_ids(1, 3).int()),
        "RetNetForCausalLM: labels must be torch.int64, got torch.int32",
    ),
    "targets of the model": (
        lambda: make_model()(random_ids(1, 3), targets=random_ids(1, 2)),
        r"RetNetForCausalLM: targets must have the shape of input_ids, \[1, 3\], got \[1, 2\]",
    ),
    "two": (
        lambda: make_model()(random_ids(1, 3), labels=random_ids(1, 3), targets=random_ids(1, 3)),
        "only one of labels, targets and last_only may be given",
    ),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS.keys())
def test_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
