# SPDX-License-Identifier: Apache-2.0
"""Whole models that others wrote, or that are written out plainly, to compare with. No code of
retnet is used."""
