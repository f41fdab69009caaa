# SPDX-License-Identifier: Apache-2.0
"""The training application: what stands behind `retnet train`, and how text is read and scored.

It stands above the library (`retnet.ops`, `retnet.nn`, checkpoints, generation), which knows
nothing of it.
"""

from retnet.training.settings import TrainingSettings
from retnet.training.trainer import Trainer, train

__all__ = ["Trainer", "TrainingSettings", "train"]
