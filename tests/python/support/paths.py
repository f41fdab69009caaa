# SPDX-License-Identifier: Apache-2.0
"""The paths of the repository and its build."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BUILD = Path(os.environ.get("RETNET_BUILD_DIR", ROOT / "build"))
