# SPDX-License-Identifier: Apache-2.0
"""The training application: `retnet train`, and the code that reads and scores text.

It uses the library (`retnet.ops`, `retnet.nn`, checkpoints and generation). The library does not
import it.
"""

from retnet.training.settings import TrainingSettings
from retnet.training.trainer import Trainer, train

__all__ = ["Trainer", "TrainingSettings", "train"]
