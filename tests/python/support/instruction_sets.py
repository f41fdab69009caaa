# SPDX-License-Identifier: Apache-2.0
"""The instruction sets that the CPU kernels can use on this machine."""

import os
import re

import pytest
import torch

from retnet.ops import retention_plan
from support.cases.retention import make_inputs


def instruction_sets() -> list[str]:
    """Returns those of this machine, the best first, as the error for an unknown name lists
    them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETNET_CPU", "none")
        with pytest.raises(ValueError, match="must be one of") as error:
            retention_plan(**make_inputs(dtype=torch.float32))
    names = re.search("one of (.*) on this machine, got none", str(error.value))
    assert names
    return names[1].split(", ")


def chosen_instruction_sets() -> list[str]:
    """Returns RETNET_CPU if it is set, and otherwise all of this machine."""
    chosen = os.environ.get("RETNET_CPU")
    return [chosen] if chosen else instruction_sets()
