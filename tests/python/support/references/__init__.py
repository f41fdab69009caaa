# SPDX-License-Identifier: Apache-2.0
"""Whole models to compare with. Other projects wrote them, or they are written out plainly. They
use no code of retnet.
"""
