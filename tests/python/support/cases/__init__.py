# SPDX-License-Identifier: Apache-2.0
"""Inputs and small models for the tests, and checks that several test files run on them."""
