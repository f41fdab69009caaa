# SPDX-License-Identifier: Apache-2.0
"""Comparisons of operators with their oracles, at the tolerances of the table."""
