# SPDX-License-Identifier: Apache-2.0
"""The definition of each operator, in float64. No code of retnet is used."""
