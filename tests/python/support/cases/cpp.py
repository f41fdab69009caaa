# SPDX-License-Identifier: Apache-2.0
"""C++ modules with the weights of Python modules."""

import torch

import retnet.cpp as cpp


def twin_of(model, dtype=torch.float64):
    """Returns the C++ model with the weights of a Python model."""
    made = cpp.RetNetForCausalLM(model.config, dtype=dtype)
    made.load_state_dict(model.state_dict())
    return made


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters()}


def same(actual, expected):
    """Compares bit by bit, because both run the same operators in the same order."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
