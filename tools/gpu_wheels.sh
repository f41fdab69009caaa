#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Gathers wheels for a GPU machine without network into gpu-wheels/ (ignored by git): the peers of the benchmarks and
# what the tests need. tools/gpu_check.sh installs them there.
#
#   tools/gpu_wheels.sh [VENV]      VENV (default .venv) holds the pip to use
#   PYTHON_VERSION=3.12             the Python of the GPU machine
#
# torchscale's own requirements, fairscale and timm, are not needed for what is used of it. That the two lists below hold
# all that is imported is tested (tests/python/test_gpu_tools.py).
set -euo pipefail
cd "$(dirname "$0")/.."

# Expected on that machine.
present=(torch setuptools triton transformers numpy safetensors tokenizers tqdm packaging pytest matplotlib cmake ninja pybind11)
packages=(tomli-w hypothesis sortedcontainers flash-linear-attention==0.6.0 fla-core==0.6.0 einops torchscale==0.3.0)
folder=gpu-wheels
limit_mb=40

platforms=()
for version in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${version}_x86_64")
done
rm -rf "$folder"
"${1:-.venv}/bin/python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
  --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" --dest "$folder" "${packages[@]}"

wheels=("$folder"/*.whl)
ls -l "$folder"
bytes=$(du -sb --apparent-size "$folder" | cut -f1)
echo "$folder: ${#wheels[@]} wheels, $(awk "BEGIN { printf \"%.1f\", $bytes / 1e6 }") MB (limit $limit_mb)"
if ((bytes > limit_mb * 1000000)); then
  echo "$folder is above $limit_mb MB" >&2
  exit 1
fi
