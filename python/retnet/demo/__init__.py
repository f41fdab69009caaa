# SPDX-License-Identifier: Apache-2.0
"""The demonstration behind `make demo`: a small RetNet learns to write Python.

Run `python -m retnet.demo --help`. The demo needs matplotlib (`pip install retnet[demo]`).
"""
