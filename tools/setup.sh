#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Usage: tools/setup.sh VENV
#
# Makes the virtual environment VENV and installs the packages that pyproject.toml names. It also installs missing
# system packages if it has the rights to do so.
#
# Environment: PYTHON   the interpreter (default python3)
#              TORCH    the version of torch (default 2.11.0)
#              CUDA=1   installs nvcc from PyPI if the machine has none
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit("retnet needs Python 3.10 or newer") if sys.version_info < (3, 10) else None'
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" ||
  { echo "retnet: please run: sudo apt-get install -y python3-venv python3-dev" >&2; exit 1; }

requirements=$("$venv/bin/python" - <<'END'
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
extras = project["project"]["optional-dependencies"].values()
print(*project["build-system"]["requires"], *project["project"]["dependencies"],
      *(name for extra in extras for name in extra), sep="\n")
END
)
mapfile -t requirements <<<"$requirements"
requirements+=("torch==${TORCH:-2.11.0}")
"$venv/bin/python" -m pip install --quiet "uv>=0.9" || true
# uv is minutes faster than pip, which unpacks one file at a time. pip is the fallback, because only pip reads a mirror
# from its own settings.
install() {
  "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" "$@" || "$venv/bin/python" -m pip install --quiet "$@"
}
install "${requirements[@]}"
if [ -n "${CUDA:-}" ] && ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
  # The version must be that of the CUDA runtime and headers that torch brought. Some torch versions also bring cccl.
  cuda=$("$venv/bin/python" -c "import torch; print(torch.version.cuda or '13.0')")
  toolkit=("nvidia-cuda-nvcc==$cuda.*" "nvidia-cuda-crt==$cuda.*" "nvidia-nvvm==$cuda.*")
  "$venv/bin/python" -m pip show --quiet nvidia-cuda-cccl 2>/dev/null || toolkit+=("nvidia-cuda-cccl==$cuda.*")
  install "${toolkit[@]}"
fi
# torchscale is a peer of the benchmarks, and the tests of `retnet convert` use it. Its requirements are skipped: they
# serve training in its own framework, and some of them exist only as source.
install --no-deps torchscale==0.3.0

missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v clang-format >/dev/null || missing+=(clang-format)
[ -d /usr/include/catch2 ] || [ -d /usr/local/include/catch2 ] || missing+=(catch2)
[ -d /usr/include/nlohmann ] || [ -d /usr/local/include/nlohmann ] || missing+=(nlohmann-json3-dev)
command -v doxygen >/dev/null || missing+=(doxygen)
if [ "$(uname -m)" = x86_64 ]; then # qemu runs the portable kernels as aarch64 code
  command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
  command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
fi
if [ ${#missing[@]} -gt 0 ]; then
  install="apt-get install -y ${missing[*]}"
  if ! command -v apt-get >/dev/null; then
    echo "retnet: please install ${missing[*]} with your system's package manager" >&2
  elif [ "$(id -u)" = 0 ]; then
    { apt-get update -qq && $install -qq; } || echo "retnet: failed: $install" >&2
  elif sudo -n true 2>/dev/null; then
    { sudo apt-get update -qq && sudo $install -qq; } || echo "retnet: failed: sudo $install" >&2
  else
    echo "retnet: please run: sudo $install" >&2
  fi
  command -v g++ >/dev/null # required by the build; only `make test`, `make lint` and `make docs` need the others
fi
