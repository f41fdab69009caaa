# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of modules."""

import pytest

import retnet.nn.loss as module


@pytest.fixture
def short(monkeypatch):
    """Limits chunks to 12 tokens."""
    monkeypatch.setattr(module, "_LOGITS", 0)
    monkeypatch.setattr(module, "_TOKENS", 12)
