#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds for the GPU of this machine, tests and measures on it, and writes one tar file of results,
# gpu-results/gpu-check-<device>.tar.gz. It needs no network. Without a GPU it prints "skipped: no GPU" and exits
# with status 0.
#
#   tools/gpu_check.sh [all|test|bench]
#     test    builds, runs the GPU tests, and runs compute-sanitizer
#     bench   builds and runs benchmarks/ops.py; its results are added to those of an earlier test. Copy its
#             summary.json to benchmarks/results/<device>; make results then writes the pages.
#     all     does both (the default)
#   test and bench end within 10 minutes each, including the build. all ends within 25 minutes.
#   bench reuses the build and the results of test only if both run in the same checkout of the same machine. On a fresh
#   machine it builds again.
#
# Environment: PYTHON   the Python that has torch; by default that of .venv, else python3
#              OUT      a folder that gets a copy of the tar file
#              RETNET_CMAKE_ARGS   options that are added to the CMake configuration
#
# The script needs nvcc and the Python packages that tools/gpu_wheels.sh lists. Wheels in gpu-wheels/ (make gpu-wheels)
# are installed in build/gpu/, beside the build. Each part has its own time limit. The tar file is written again when a
# part ends and when the script is interrupted. If the build fails, nothing else runs. If another part fails, the rest
# still run. The exit status is 0 only if all parts passed.
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
child="" # the process of the running part, and its name
running=""
budget=570 # seconds; one stage must end within 10 minutes
[[ $stage == all ]] && budget=1470

# left RESERVE MAXIMUM: prints how many seconds a part may take if RESERVE seconds are kept for the later parts.
left() {
  local seconds=$((budget - SECONDS - $1))
  echo $((seconds < $2 ? seconds : $2))
}

# Writes each tar file under another name and renames it when it is complete, so that a kill leaves the previous one.
save() {
  local tar=gpu-check-$slug.tar.gz
  tar -czf "gpu-results/$tar.new" -C gpu-results "$slug"
  mv "gpu-results/$tar.new" "gpu-results/$tar"
  if [[ -n ${OUT:-} ]]; then
    cp "gpu-results/$tar" "$OUT/$tar.new" && mv "$OUT/$tar.new" "$OUT/$tar"
  fi
}

# run NAME SECONDS COMMAND...: runs the command with a time limit, writes its output to NAME.log and records its time.
run() {
  local name=$1 limit=$2 log=$results/$1.log start=$SECONDS status
  shift 2
  if ((limit < 5)); then
    printf "%-10s not run: no time left\n" "$name" | tee -a "$results/parts.txt"
    return 124
  fi
  echo "== $name"
  # There is no pipe, because a process that outlives the command would keep it open. The command runs in the
  # background, so that the script handles signals at once. The time limit sends SIGINT, so that pytest still writes its
  # results.
  : >"$log"
  timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$log" 2>&1 &
  child=$! running=$name
  tail --lines=+1 --follow --sleep-interval=0.2 --pid="$child" "$log" &
  wait "$child"
  status=$?
  child=""
  wait
  printf "%-10s %4d s   exit status %d%s\n" "$name" $((SECONDS - start)) "$status" \
    "$([[ $status == 124 || $status == 137 ]] && echo " (time limit $limit s)")" | tee -a "$results/parts.txt"
  save
  return "$status"
}

part() {
  run "$@" || failed+=("$1")
}

finish() {
  if [[ -n $child ]]; then
    printf "%-10s interrupted\n" "$running" >>"$results/parts.txt"
    save # first, because the command may take long to end
    kill -INT "$child"
    wait
  fi
  save
  echo "== $device: parts"
  cat "$results/parts.txt"
  echo "gpu-results/gpu-check-$slug.tar.gz: $(du -h "gpu-results/gpu-check-$slug.tar.gz" | cut -f1)"
}
trap finish EXIT
trap "exit 129" HUP
trap "exit 130" INT
trap "exit 143" TERM

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
  [[ $arch == 9.0 ]] && arch=9.0a # sm_90a has instructions that sm_90 lacks
  if compgen -G "gpu-wheels/*.whl" >/dev/null; then
    part wheels 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target build/gpu/wheels gpu-wheels/*.whl
  fi
  export PYTHONPATH=$PWD/build/gpu/site:$PWD/build/gpu/wheels:$PWD/gpu-wheels${PYTHONPATH:+:$PYTHONPATH}
  TORCH_CUDA_ARCH_LIST=$arch RETNET_BUILD_DIR=$PWD/build/gpu/cmake \
    RETNET_CMAKE_ARGS="-DRETNET_CUDA=ON -DRETNET_WERROR=OFF ${RETNET_CMAKE_ARGS:-}" \
    run build "$(left 60 300)" "$python" setup.py --quiet build --build-base build/gpu/base --build-lib build/gpu/site
}

gpu_tests() {
  local tests=("$python" -m pytest tests/python -p no:cacheprovider --continue-on-collection-errors -vv --durations=10)
  local workers=()
  # Each worker uses two threads (tests/python/conftest.py). support/file_order.py decides which files come first.
  if "$python" -c "import xdist" 2>/dev/null; then
    workers=(-n $((($(nproc) + 1) / 2)) --dist loadfile --no-loadscope-reorder)
  fi
  part pytest "$(left 160 270)" "${tests[@]}" -m "cuda and not large_memory" "${workers[@]}" \
    --junitxml="$results/pytest.xml"
  part large "$(left 100 60)" "${tests[@]}" -m "cuda and large_memory" --junitxml="$results/large.xml"
}

# Runs one tool of compute-sanitizer. If the tool does not work on this machine, a line says so and nothing fails.
sanitize() {
  local tool=$1 why summary="ERROR SUMMARY|RACECHECK SUMMARY"
  if ! command -v compute-sanitizer >/dev/null; then
    why="compute-sanitizer is not installed"
  elif PYTORCH_NO_CUDA_MEMORY_CACHING=1 run "$tool" "$(left 0 50)" compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "$python" tools/gpu_sanitize.py; then
    return
  elif grep -qsi "not supported" "$results/$tool.log" || ! grep -qsE "$summary" "$results/$tool.log"; then
    why=$(grep -s -m1 -iE "not supported|unable|failed|error" "$results/$tool.log" || echo "no summary within its time")
  else
    failed+=("$tool")
    return
  fi
  echo "sanitizer unavailable: $tool: $why" | tee -a "$results/parts.txt"
}

versions >"$results/versions.txt" 2>&1
save
if ! build; then
  failed+=(build)
else
  if [[ $stage != bench ]]; then
    gpu_tests
    sanitize memcheck
    sanitize racecheck
  fi
  if [[ $stage != test ]]; then
    limit=$(left 0 570)
    part bench "$limit" "$python" benchmarks/ops.py --device cuda --out "$results" \
      --minutes "$(awk "BEGIN { print ($limit - 120) / 60 }")"
  fi
fi

if ((${#failed[@]})); then
  echo "gpu-check failed: ${failed[*]}" | tee -a "$results/parts.txt"
  exit 1
fi
echo "gpu-check passed" | tee -a "$results/parts.txt"
