# SPDX-License-Identifier: Apache-2.0
"""RetNet modules over the operators of `retnet.ops` (paper 2307.08621, section 2)."""

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
