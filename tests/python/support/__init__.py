# SPDX-License-Identifier: Apache-2.0
"""What several test files share: inputs, oracles, references, tolerances, paths.

cases       inputs, small models, and checks that several files run on them
oracles     the definition of each operator, in float64
references  whole models by other hands: plain PyTorch, flash-linear-attention, torchscale
"""
