#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds for this machine's GPU, offline, tests and measures there, and leaves one tar of results:
# gpu-results/gpu-check-<device>.tar.gz. Without a GPU: "skipped: no GPU", exit status 0.
#
#   tools/gpu_check.sh [all|test|bench]
#     test    build, GPU tests, compute-sanitizer     each of the two fits in 10 minutes, the build included
#     bench   build, benchmarks/ops.py                (the second finds the first one's build and adds to its results)
#   all takes less than 25 minutes.
#
# Environment: PYTHON   the Python that has torch; by default .venv's, else python3
#              OUT      a folder that gets a copy of the tar
#              RETNET_CMAKE_ARGS   added to the configuration
#
# Needs nvcc and the Python packages that tools/gpu_wheels.sh lists. Wheels in gpu-wheels/ (make gpu-wheels) are installed
# beside the build, in build/gpu/. A part that fails does not keep the others from running, nor the tar from
# being made; the exit status is 0 only if all parts passed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

stage=${1:-all}
case $stage in all | test | bench) ;; *)
  echo "usage: $0 [all|test|bench]" >&2
  exit 2
  ;;
esac

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" .venv/bin/python python3; do
    if [[ -n $candidate ]] && "$candidate" -c "import torch" 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

python=$(find_python)
device=""
if [[ -n $python ]]; then
  device=$("$python" -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")
fi
if [[ -z $device ]]; then
  if nvidia-smi -L 2>/dev/null | grep -q "^GPU"; then
    echo "gpu-check: nvidia-smi lists a GPU, but no Python with a torch that sees it was found (set PYTHON)" >&2
    exit 1
  fi
  echo "skipped: no GPU"
  exit 0
fi

slug=$(tr -cs "a-z0-9\n" - <<<"${device,,}" | sed "s/^-//; s/-$//")
results=$PWD/gpu-results/$slug
[[ $stage == bench ]] || rm -rf "$results"
mkdir -p "$results" build/gpu
export PATH=$PATH:/usr/local/cuda/bin
export PYTHONUNBUFFERED=1
failed=()

# Seconds left of a stage's 10 minutes, with some kept for the tar.
left() {
  if [[ $stage == all ]]; then echo 600; else echo $((580 - SECONDS)); fi
}

# run NAME SECONDS COMMAND...: the command within a time limit, its output in NAME.log, its time printed and kept.
run() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  echo "== $name"
  timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1 | tee "$results/$name.log"
  status=${PIPESTATUS[0]}
  printf "%-10s %4d s   exit status %d%s\n" "$name" $((SECONDS - start)) "$status" \
    "$([[ $status == 124 ]] && echo " (time limit $limit s)")" | tee -a "$results/parts.txt"
  return "$status"
}

part() {
  run "$@" || failed+=("$1")
}

finish() {
  local tar=gpu-results/gpu-check-$slug.tar.gz
  tar -czf "$tar" -C gpu-results "$slug"
  [[ -n ${OUT:-} ]] && cp "$tar" "$OUT/"
  echo "== $device: parts"
  cat "$results/parts.txt"
  echo "$tar: $(du -h "$tar" | cut -f1)"
}
trap finish EXIT

versions() {
  nvidia-smi -L
  nvidia-smi
  uname -a
  nvcc --version
  "$python" --version
  "$python" -m pip list
}

build() {
  local arch
  arch=$("$python" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
  [[ $arch == 9.0 ]] && arch=9.0a # the instructions that only it has
  if compgen -G "gpu-wheels/*.whl" >/dev/null; then
    part wheels 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target build/gpu/wheels gpu-wheels/*.whl
  fi
  export PYTHONPATH=$PWD/build/gpu/site:$PWD/build/gpu/wheels:$PWD/gpu-wheels${PYTHONPATH:+:$PYTHONPATH}
  TORCH_CUDA_ARCH_LIST=$arch RETNET_BUILD_DIR=$PWD/build/gpu/cmake \
    RETNET_CMAKE_ARGS="-DRETNET_CUDA=ON ${RETNET_CMAKE_ARGS:-}" \
    run build 300 "$python" setup.py --quiet build --build-base build/gpu/base --build-lib build/gpu/site
}

# One tool of compute-sanitizer; where it cannot work on this machine, a line that says so and no failure.
sanitize() {
  local tool=$1 why summary="ERROR SUMMARY|RACECHECK SUMMARY"
  if ! command -v compute-sanitizer >/dev/null; then
    why="compute-sanitizer is not installed"
  elif PYTORCH_NO_CUDA_MEMORY_CACHING=1 run "$tool" 50 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "$python" tools/gpu_sanitize.py; then
    return 0
  elif grep -qi "not supported" "$results/$tool.log" || ! grep -qE "$summary" "$results/$tool.log"; then
    why=$(grep -m1 -iE "not supported|unable|failed|error" "$results/$tool.log" || echo "no summary within its time")
  else
    failed+=("$tool")
    return 0
  fi
  echo "sanitizer unavailable: $why" | tee -a "$results/parts.txt"
  return 1
}

versions >"$results/versions.txt" 2>&1
if ! build; then
  failed+=(build)
else
  if [[ $stage != bench ]]; then
    part pytest $(($(left) < 400 ? $(left) - 130 : 270)) "$python" -m pytest tests/python -m cuda -p no:cacheprovider \
      --continue-on-collection-errors --durations=10 --junitxml="$results/pytest.xml"
    sanitize memcheck && sanitize racecheck
  fi
  if [[ $stage != test ]]; then
    limit=$(left)
    part bench "$limit" "$python" benchmarks/ops.py --device cuda --out "$results" \
      --minutes "$(awk "BEGIN { print ($limit - 120) / 60 }")"
  fi
fi

if ((${#failed[@]})); then
  echo "gpu-check failed: ${failed[*]}" | tee -a "$results/parts.txt"
  exit 1
fi
echo "gpu-check passed" | tee -a "$results/parts.txt"
