#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Collects wheels in gpu-wheels/ (ignored by Git) for a GPU machine without a network: the peers of the benchmarks and
# the packages that the tests need. tools/gpu_check.sh installs them on that machine.
#
#   tools/gpu_wheels.sh [VENV]      uses the pip of VENV (default .venv)
#   PYTHON_VERSION=3.12             the Python version of the GPU machine
#   HELION_REPOSITORY=URL           the repository with the Helion example (default: GitHub); if it cannot be fetched,
#                                   that peer is left out
#
# The parts of torchscale that are used here do not need its requirements fairscale and timm.
# tests/python/tools/test_gpu_tools.py checks that the two lists below cover all imports.
set -euo pipefail
cd "$(dirname "$0")/.."

# These are expected on that machine.
present=(torch setuptools triton transformers numpy safetensors tokenizers tqdm packaging pytest matplotlib cmake ninja pybind11)
packages=(tomli-w pytest-xdist execnet hypothesis sortedcontainers flash-linear-attention==0.6.0 fla-core==0.6.0 einops
  torchscale==0.3.0 helion==1.4.0 rich pygments markdown-it-py mdurl)
folder=gpu-wheels
limit_mb=40

platforms=()
for version in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${version}_x86_64")
done
rm -rf "$folder"
"${1:-.venv}/bin/python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
  --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" --dest "$folder" "${packages[@]}"

# Helion has retention only among its examples. At this commit they include configurations tuned for H100 and B200. The
# package version above is the newest that runs with torch 2.11.
helion=${HELION_REPOSITORY:-https://github.com/pytorch/helion} commit=ef091f416a50c443b38e4c8bff2980777f5ff225
checkout=$(mktemp -d)
trap 'rm -rf "$checkout"' EXIT
git init --quiet "$checkout"
if git -C "$checkout" fetch --quiet --depth 1 "$helion" "$commit"; then
  mkdir "$folder/helion_linear"
  git -C "$checkout" archive FETCH_HEAD:examples/linear | tar -x -C "$folder/helion_linear"
else
  echo "no example of Helion: $helion cannot be fetched from; the benchmarks will say that it is absent" >&2
fi

wheels=("$folder"/*.whl)
ls -l "$folder"
bytes=$(du -sb --apparent-size "$folder" | cut -f1)
echo "$folder: ${#wheels[@]} wheels, $(awk "BEGIN { printf \"%.1f\", $bytes / 1e6 }") MB (limit $limit_mb)"
if ((bytes > limit_mb * 1000000)); then
  echo "$folder is above $limit_mb MB" >&2
  exit 1
fi
