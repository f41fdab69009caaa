#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds kernel_smoke (tests/kernels/cuda/smoke): the CUDA kernels with the cases of their tests, without torch, Python
# or CMake. It needs nvcc and a C++ compiler.
#
#   tools/kernel_smoke.sh [ARCHITECTURE [FILE]]     default: sm_90a, build/kernel_smoke
#
# Environment: NVCC   default: nvcc of PATH, CUDA_HOME or /usr/local/cuda
#              JOBS   compilers that run at the same time; default: as many as there are cores
set -euo pipefail
cd "$(dirname "$0")/.."
architecture=${1:-sm_90a} file=${2:-build/kernel_smoke}
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin:/usr/local/cuda/bin

# One architecture, and no PTX beside it.
target="-gencode=arch=compute_${architecture#sm_},code=$architecture"
options="-std=c++20 -O1 $target -Itests/kernels/cuda/smoke -Itests/kernels/cuda -Itests -I."
folder=tests/kernels/cuda
# The slowest come first.
sources=("$folder"/smoke/{chunkwise,grad_log_decay,norm,decode_step,rotary,test_device_cuda}.cu
  "$folder"/{chunkwise,chunkwise_edges,chunkwise_backward,grad_log_decay,decode_step,gated_group_norm,rotary}_emulated.cpp
  "$folder"/smoke/{main,times}.cpp
  kernels/cuda/retention/{chunkwise,grad_log_decay}/plan.cpp
  tests/simt/runtime/{report,findings,symbols}.cpp)

objects=$(dirname "$file")/kernel_smoke.objects
rm -rf "$objects"
mkdir -p "$objects"
compile() {
  "$NVCC" $options -c "$1" -o "$objects/$(tr / _ <<<"$1").o" || { echo "kernel_smoke: $1 does not compile" >&2; exit 255; }
}
export NVCC=${NVCC:-nvcc} options objects
export -f compile
printf "%s\0" "${sources[@]}" | xargs -0 -n 1 -P "${JOBS:-$(nproc)}" bash -c 'compile "$1"' _
"$NVCC" $target "$objects"/*.o -o "$file"
echo "$file: $architecture, $SECONDS s"
