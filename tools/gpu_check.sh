#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds for the GPU of this machine, tests and measures on it, and writes one tar file of results,
# gpu-results/gpu-check-<device>.tar.gz. It needs no network. Without a GPU it prints "skipped: no GPU" and exits
# with status 0.
#
#   tools/gpu_check.sh [all|test|bench]
#     test    runs these parts in this order:
#               smoke_build, smoke      kernel_smoke (tools/kernel_smoke.sh), which needs no torch: its results are
#                                       there within a minute
#               ncu-NAME                the counters of three kernels at their headline shapes
#               memcheck, racecheck, initcheck, synccheck
#                                       compute-sanitizer on one case of each kernel
#               build                   the library. On 8 cores or more it compiles while the parts above run
#               pytest                  the tests that need a GPU, several files at the same time
#               large                   the tests that need much memory, one after the other
#     bench   builds and runs benchmarks/ops.py; its results are added to those of an earlier test. Copy its
#             summary.json to benchmarks/results/<device>; make results then writes the pages.
#     all     does both (the default)
#   test and bench end within 10 minutes each, including the build. all ends within 25 minutes.
#   bench reuses the build and the results of test only if both run in the same checkout of the same machine. On a fresh
#   machine it builds again. So call bench at once after test.
#
# Environment: PYTHON   the Python that has torch; by default that of .venv, else python3
#              OUT      a folder that gets a copy of the tar file
#              RETNET_CMAKE_ARGS   options that are added to the CMake configuration
#
# The script needs nvcc and the Python packages that tools/gpu_wheels.sh lists. Wheels in gpu-wheels/ (make gpu-wheels)
# are installed in build/gpu/, beside the build. Each part has its own time limit. The tar file is written again when a
# part ends and when the script is interrupted. If the build fails, the tests and the benchmarks do not run. If another
# part fails, the rest still run. The exit status is 0 only if all parts passed. ncu and compute-sanitizer do not work on
# every machine: where they do not, a line says so and nothing fails.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

stage=${1:-all}
case $stage in all | test | bench) ;; *)
  echo "usage: $0 [all|test|bench]" >&2
  exit 2
  ;;
esac

# Prints a Python whose torch sees the GPU. Importing torch takes seconds.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" .venv/bin/python python3; do
    if [[ -n $candidate ]] && "$candidate" -c "import torch; assert torch.cuda.is_available()" 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

python="" device="" capability=""
gpu=$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
if [[ $gpu =~ ^(.+),\ *([0-9]+\.[0-9]+)$ ]]; then
  device=${BASH_REMATCH[1]} capability=${BASH_REMATCH[2]}
else
  python=$(find_python)
  if [[ -n $python ]]; then
    device=$("$python" -c "import torch; print(torch.cuda.get_device_name())")
    capability=$("$python" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
  fi
fi
if [[ -z $device ]]; then
  if nvidia-smi -L 2>/dev/null | grep -q "^GPU"; then
    echo "gpu-check: nvidia-smi lists a GPU, but does not tell its compute capability, and no Python with a torch that" \
      "sees it was found (set PYTHON)" >&2
    exit 1
  fi
  echo "skipped: no GPU"
  exit 0
fi
[[ $capability == 9.0 ]] && capability=9.0a # sm_90a has instructions that sm_90 lacks

slug=$(tr -cs "a-z0-9\n" - <<<"${device,,}" | sed "s/^-//; s/-$//")
results=$PWD/gpu-results/$slug
[[ $stage == bench ]] || rm -rf "$results"
mkdir -p "$results" build/gpu
export PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer
for folder in /opt/nvidia/nsight-compute/*/; do PATH=$PATH:$folder; done
export PYTHONUNBUFFERED=1
failed=()
declare -A child=() started=() limit=() # of the parts that are running
budget=570 # seconds; one stage must end within 10 minutes
[[ $stage == all ]] && budget=1470

# left RESERVE MAXIMUM: prints how many seconds a part may take if RESERVE seconds are kept for the later parts.
left() {
  local seconds=$((budget - SECONDS - $1))
  echo $((seconds < $2 ? seconds : $2))
}

note() {
  echo "$*" | tee -a "$results/parts.txt"
}

# Writes each tar file under another name and renames it when it is complete, so that a kill leaves the previous one.
save() {
  local tar=gpu-check-$slug.tar.gz
  tar -czf "gpu-results/$tar.new" -C gpu-results --warning=no-file-changed "$slug"
  mv "gpu-results/$tar.new" "gpu-results/$tar"
  if [[ -n ${OUT:-} ]]; then
    cp "gpu-results/$tar" "$OUT/$tar.new" && mv "$OUT/$tar.new" "$OUT/$tar"
  fi
}

# begin NAME SECONDS COMMAND...: starts the command with a time limit. Its output goes to NAME.log.
begin() {
  local name=$1 seconds=$2 log=$results/$1.log
  shift 2
  if ((seconds < 5)); then
    note "$(printf "%-22s not run: no time left" "$name")"
    return 124
  fi
  : >"$log"
  # There is no pipe, because a process that outlives the command would keep it open. The command runs in the
  # background, so that the script handles signals at once. The time limit sends SIGINT, so that pytest still writes its
  # results.
  timeout --signal=INT --kill-after=10 "$seconds" "$@" >>"$log" 2>&1 &
  child[$name]=$! limit[$name]=$seconds started[$name]=$SECONDS
}

# end NAME: shows the output of a part that has begun, waits for its end, and records its status and time.
end() {
  local name=$1 status
  echo "== $name"
  tail --lines=+1 --follow --sleep-interval=0.2 --pid="${child[$name]}" "$results/$name.log" &
  wait "${child[$name]}"
  status=$?
  unset "child[$name]"
  wait $!
  note "$(printf "%-22s %4d s   exit status %d%s" "$name" $((SECONDS - ${started[$name]})) "$status" \
    "$([[ $status == 124 || $status == 137 ]] && echo " (time limit ${limit[$name]} s)")")"
  save
  return "$status"
}

run() {
  begin "$@" && end "$1"
}

part() {
  run "$@" || failed+=("$1")
}

finish() {
  local name
  if ((${#child[@]})); then
    for name in "${!child[@]}"; do printf "%-22s interrupted\n" "$name" >>"$results/parts.txt"; done
    save # first, because the commands may take long to end
    kill -INT "${child[@]}"
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
}

# Begins to build the library.
begin_build() {
  local seconds=$1
  [[ -n $python ]] || python=$(find_python)
  if [[ -z $python ]]; then
    note "$(printf "%-22s not run: no Python with a torch that sees the GPU (set PYTHON)" build)"
    return 1
  fi
  { "$python" --version && "$python" -m pip list; } >>"$results/versions.txt" 2>&1
  if compgen -G "gpu-wheels/*.whl" >/dev/null; then
    part wheels 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target build/gpu/wheels gpu-wheels/*.whl
  fi
  export PYTHONPATH=$PWD/build/gpu/site:$PWD/build/gpu/wheels:$PWD/gpu-wheels${PYTHONPATH:+:$PYTHONPATH}
  # The log ends with the time, because other parts may run until the end of the build is noticed.
  TORCH_CUDA_ARCH_LIST=$capability RETNET_BUILD_DIR=$PWD/build/gpu/cmake TIMEFORMAT="compiled for %0R s" \
    RETNET_CMAKE_ARGS="-DRETNET_CUDA=ON -DRETNET_WERROR=OFF ${RETNET_CMAKE_ARGS:-}" \
    begin build "$seconds" bash -c 'time "$@"' _ \
    "$python" setup.py --quiet build --build-base build/gpu/base --build-lib build/gpu/site
}

# What compute-sanitizer prints when it finds an error. It prints the summary only at the end of the program.
finding="^=+ .*(Invalid|Misaligned|Uninitialized|Race reported|Barrier error)"

# A part that uses a tool which does not work on every machine. TOOL must be installed, and its output must have DONE
# if it worked. If it did not work, a line says so and nothing fails. A part that exceeds its time fails if it found an
# error before.
tool_part() {
  local name=$1 seconds=$2 tool=$3 done=$4 status why
  shift 4
  if ! command -v "$tool" >/dev/null; then
    why="$tool is not installed"
  else
    run "$name" "$seconds" "$tool" "$@"
    status=$?
    ((status == 0)) && return
    if [[ $status == 124 || $status == 137 ]]; then
      if grep -qE "$finding" "$results/$name.log"; then
        failed+=("$name")
        return
      fi
      why="no result within its time"
    elif grep -qsiE "$done" "$results/$name.log" && ! grep -qsi "not supported" "$results/$name.log"; then
      failed+=("$name")
      return
    else
      why=$(grep -s -m1 -iE "not supported|unable|failed|error" "$results/$name.log" || echo "no summary")
    fi
  fi
  note "unavailable: $name: $why"
}

smoke=build/gpu/kernel_smoke

# The tools that look into kernel_smoke. They are short, because the tests come after them.
look_into_smoke() {
  local kernel tool
  for kernel in chunkwise_forward chunkwise_backward decode_step; do
    # The first launches warm up.
    tool_part "ncu-$kernel" "$(left 390 30)" ncu "==PROF== Disconnected" --clock-control none --set full \
      --launch-skip 3 --launch-count 1 "$smoke" --no-check --kernel "$kernel"
  done
  for tool in memcheck racecheck initcheck synccheck; do
    tool_part "$tool" "$(left 350 40)" compute-sanitizer "(ERROR|RACECHECK) SUMMARY" --tool "$tool" \
      --error-exitcode 9 "$smoke" --short --no-time --sanitizer
  done
}

gpu_tests() {
  local tests=("$python" -m pytest tests/python -p no:cacheprovider --continue-on-collection-errors -vv --durations=10)
  local workers=()
  # Each worker uses two threads (tests/python/conftest.py). support/file_order.py decides which files come first.
  if "$python" -c "import xdist" 2>/dev/null; then
    workers=(-n $((($(nproc) + 1) / 2)) --dist loadfile --no-loadscope-reorder)
  fi
  part pytest "$(left 70 270)" "${tests[@]}" -m "cuda and not large_memory" "${workers[@]}" \
    --junitxml="$results/pytest.xml"
  part large "$(left 10 60)" "${tests[@]}" -m "cuda and large_memory" --junitxml="$results/large.xml"
}

versions >"$results/versions.txt" 2>&1
save
look=""
if [[ $stage != bench ]]; then
  if run smoke_build "$(left 420 120)" tools/kernel_smoke.sh "sm_${capability/./}" "$smoke"; then
    part smoke "$(left 390 90)" "$smoke"
    look=yes
  else
    failed+=(smoke_build)
  fi
fi
# With enough cores the library compiles while the GPU is busy.
if [[ -n $look ]] && (($(nproc) < 8)); then
  look_into_smoke
  look=""
fi
begun=""
begin_build "$(left 60 300)" && begun=yes
[[ -z $look ]] || look_into_smoke
if [[ -z $begun ]] || ! end build; then
  failed+=(build)
else
  [[ $stage == bench ]] || gpu_tests
  if [[ $stage != test ]]; then
    seconds=$(left 0 570)
    part bench "$seconds" "$python" benchmarks/ops.py --device cuda --out "$results" \
      --minutes "$(awk "BEGIN { print ($seconds - 120) / 60 }")"
  fi
fi

if ((${#failed[@]})); then
  note "gpu-check failed: ${failed[*]}"
  exit 1
fi
note "gpu-check passed"
