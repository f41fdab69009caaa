# SPDX-License-Identifier: Apache-2.0
"""RetNet modules, built on the operators of `retnet.ops` (Sun et al. 2023, section 2).

"The paper" in the docstrings is Sun et al. 2023, arXiv 2307.08621.
"""

from retnet.nn.causal_lm import CausalLMOutput, RetNetForCausalLM
from retnet.nn.decoder_layer import DecoderLayer
from retnet.nn.feed_forward import FeedForward
from retnet.nn.linear import Linear
from retnet.nn.loss import linear_cross_entropy
from retnet.nn.multi_scale_retention import MultiScaleRetention
from retnet.nn.norm import GatedGroupNorm
from retnet.nn.retnet import RetNet
from retnet.state import RetNetState

__all__ = [
    "CausalLMOutput",
    "DecoderLayer",
    "FeedForward",
    "GatedGroupNorm",
    "Linear",
    "MultiScaleRetention",
    "RetNet",
    "RetNetForCausalLM",
    "RetNetState",
    "linear_cross_entropy",
]
