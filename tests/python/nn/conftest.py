# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of modules."""

import pytest

import retnet.nn.loss as module


@pytest.fixture
def short(monkeypatch):
    """Chunks of 12 tokens at most."""
    monkeypatch.setattr(module, "_LOGITS", 0)
    monkeypatch.setattr(module, "_TOKENS", 12)
