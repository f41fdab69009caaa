# SPDX-License-Identifier: Apache-2.0
"""What several test files share: inputs, oracles, references, tolerances, paths.

cases       inputs and small models
oracles     the definition of each operator, in float64
checks      an operator beside its oracle
references  whole models by other hands: plain PyTorch, flash-linear-attention, torchscale
"""
