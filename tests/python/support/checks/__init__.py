# SPDX-License-Identifier: Apache-2.0
"""Operators beside their oracles, at the table's tolerances."""
