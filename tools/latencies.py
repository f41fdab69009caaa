# SPDX-License-Identifier: Apache-2.0
"""States what instructions cost on an H100, with a source for each figure.

Only instructions with a scoreboard need the cycles between issue and result. For the others, the
compiler writes these cycles into the instructions (schedule.py).
"""

from typing import NamedTuple


class Figure(NamedTuple):
    """A number, and who measured or published it."""

    value: float
    source: str


GUIDE = "CUDA C++ Programming Guide, throughput of arithmetic instructions, capability 9.0"
PAPER = "Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture, 2024"
STUDY = "CUDA Performance Study, NVIDIA H100 SXM5 (pointer chasing and dependent chains)"
WHITE_PAPER = "NVIDIA H100 Tensor Core GPU Architecture, 2022"
TURING = "Jia et al., Dissecting the NVIDIA Turing T4 GPU via Microbenchmarking, 2019"
ASSUMED = "assumed: no measurement is known"

# For so many cycles an instruction of a warp holds a pipe of its quarter of the multiprocessor.
INTERVALS = {
    "tensor": Figure(4 / 0.62, f"{PAPER}: mma.sync reaches 62% of the peak, 4 cycles"),
    "fp32": Figure(1, GUIDE),
    "multiply": Figure(2, f"{GUIDE}: 64 a cycle"),
    "integer": Figure(2, f"{GUIDE}: 64 a cycle"),
    "convert": Figure(2, f"{GUIDE}: 64 a cycle"),
    "fp64": Figure(2, f"{GUIDE}: 64 a cycle"),
    "special": Figure(8, f"{GUIDE}: 16 a cycle"),
    "memory": Figure(4, f"{WHITE_PAPER}: 32 load and store units, 8 of a quarter"),
}

# So many cycles pass from issue, or from the end of a transfer in the pipe, to the result.
LATENCIES = {
    "shared": Figure(29, f"{STUDY}; {PAPER}"),
    "local": Figure(40, f"{STUDY}: the L1 cache"),
    "global": Figure(570, f"{STUDY}: device memory"),
    "constant": Figure(30, ASSUMED),
    "special": Figure(29, f"{STUDY}: a dependent __sinf"),
    "fp64": Figure(16, ASSUMED),
    "shuffle": Figure(23, f"{TURING}: 22, and of Hopper {ASSUMED}"),
    "barrier": Figure(25, ASSUMED),
    "cluster": Figure(190, f"{PAPER}: 180 of a load from another multiprocessor; {ASSUMED}"),
    "fence": Figure(570, f"{ASSUMED}: a store that has reached memory"),
    "operands": Figure(12, ASSUMED),  # until registers that are read may be written
}

# If so many wavefronts wait for the shared-memory pipe, no more of its instructions issue.
QUEUE = Figure(32, ASSUMED)
# The port between a multiprocessor and L2 passes so many bytes a cycle. device.h has the bandwidth
# of L2.
PORT = Figure(64, WHITE_PAPER)
# A stream reaches this share of the memory bandwidth.
STREAM = Figure(0.9, "decode_step/cost_model.h")
