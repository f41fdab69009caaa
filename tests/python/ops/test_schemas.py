# SPDX-License-Identifier: Apache-2.0
"""The schemas of the operators are stable: schemas.txt changes only with the version. Operators
whose names begin with an underscore are private.
"""

import torch

import retnet  # noqa: F401
from support.paths import ROOT

FROZEN = ROOT / "tests/schemas.txt"


def test_schemas_are_frozen():
    actual = sorted(
        str(schema)
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("retnet::") and not schema.name.startswith("retnet::_")
    )
    assert actual == FROZEN.read_text().splitlines()
