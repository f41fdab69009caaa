# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of operators."""

import pytest

from support.instruction_sets import chosen_instruction_sets


@pytest.fixture(params=chosen_instruction_sets())
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test on one instruction set."""
    monkeypatch.setenv("RETNET_CPU", request.param)
    return request.param
