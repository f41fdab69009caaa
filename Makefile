# SPDX-License-Identifier: Apache-2.0
#
# make setup        make .venv and build the package in it
#                     CUDA=1              build the CUDA kernels; nvcc comes from PyPI if the machine has none
#                     TORCH=2.15.0        use this version of torch; later commands keep it
#                     VENV=... BUILD=...  use another environment and another build tree
# make demo         train a byte-level model on real text, generate and plot (MINUTES=5)
# make test         run Catch2, the CUDA kernels in the SIMT emulator, pytest, make on-simt, and make paths
# make emulate      run the source of the CUDA kernels on the CPU, lane by lane, under a checker
# make on-simt      run the tests of the operators on csrc/ops/cuda, whose kernels run in the SIMT emulator, and check that
#                   they execute each of its lines
# make test-op OP=retention ISA=avx2
#                   run the tests of one operator on one CPU instruction set (RETNET_CPU); without ISA they run on the
#                   best one, and on the GPU if there is one
# make paths        rerun the tests of the CPU kernels on each other instruction set that this machine supports
# make newest       build with the newest torch, apart from .venv, and run the tests of operators, modules and C++
# make matrix       do the same for each torch and Python (TORCHES, PYTHONS) and write the table in
#                   docs/compatibility.md (takes hours)
# make lint         check formatting, types, layer rules and the generated pages
# make docs         build the documentation in build/docs (needs doxygen)
# make mutate       delete each barrier and wait of the kernels in turn and see whether a test fails (slow; not in CI)
# make kernels      compile and link the CUDA kernels for every supported architecture
# make kernel-report  report and check what they cost (registers, instructions, bytes, wavefronts)
# make kernel-smoke   build the CUDA kernels with the cases of their tests, without torch, and run them if there is a GPU
#                   (ARCH=sm_90a)
# make bench        run the benchmarks on the device that is present, then make results
# make results      write the figures in the pages, and the plots, from benchmarks/results/*/summary.json
# make gpu-wheels   collect the wheels that the benchmarks need on a GPU machine without a network
# make gpu-check    build, test and measure on a machine with a GPU
# make clean        remove build/, dist/ and the built extension

SHELL := /bin/bash
PYTHON ?= python3
MINUTES ?= 5
# ON turns compiler warnings into errors. CI sets it.
WERROR ?= OFF
VENV ?= .venv
BUILD ?= build
export RETNET_BUILD_DIR := $(abspath $(BUILD))
RUN := $(VENV)/bin/python
# The torch to build with is the requested one, else the one in the environment, else the oldest.
TORCH := $(or $(TORCH),$(patsubst $(VENV)/.torch-%,%,$(wildcard $(VENV)/.torch-*)),2.11.0)
NEWEST_TORCH := 2.15.0
# An editable install puts the extension into the source tree, which has room for one. Only .venv is editable, and other
# environments get a copy.
EDITABLE := $(if $(filter $(abspath .venv),$(abspath $(VENV))),-e)
# All architectures that the kernels are written for. The PTX serves later ones.
ARCHITECTURES := 7.5;8.0+PTX;8.6;8.9;9.0a;10.0;12.0
SOURCES := $(shell find CMakeLists.txt setup.py pyproject.toml cmake csrc kernels -type f) \
  $(if $(EDITABLE),,$(shell find python -name "*.py" -o -name "*.pyi"))

.PHONY: setup demo test tests-built ctest emulate on-simt mutate pytest test-op paths newest matrix lint docs kernels kernel-report kernel-smoke bench results gpu-wheels gpu-check clean
setup: $(VENV)/.built$(CUDA)

$(VENV)/.torch-$(TORCH):
	mkdir -p $(VENV)
	rm -f $(VENV)/.torch-*
	touch $@

$(VENV)/.tools$(CUDA): tools/setup.sh pyproject.toml $(VENV)/.torch-$(TORCH)
	PYTHON=$(PYTHON) CUDA=$(CUDA) TORCH=$(TORCH) tools/setup.sh $(VENV)
	touch $@

$(VENV)/.built$(CUDA): $(VENV)/.tools$(CUDA) $(SOURCES)
	RETNET_CMAKE_ARGS="-DRETNET_WERROR=$(WERROR) $(if $(CUDA),-DRETNET_CUDA=ON) $$RETNET_CMAKE_ARGS" $(RUN) -m pip install --quiet --no-deps --no-build-isolation $(EDITABLE) .
	touch $@

demo: setup
	$(RUN) -m retnet.demo --minutes $(MINUTES) --out demo

test: ctest emulate pytest on-simt paths
tests-built: setup
	$(VENV)/bin/cmake -B $(BUILD) -DRETNET_TESTS=ON -DRETNET_WERROR=$(WERROR)
	$(VENV)/bin/cmake --build $(BUILD)
ctest: tests-built
	$(VENV)/bin/ctest --test-dir $(BUILD) --label-exclude 'emulator|on_simt' --output-on-failure
emulate: tests-built
	@$(VENV)/bin/ctest --test-dir $(BUILD) --label-regex emulator --parallel 2 --verbose > $(BUILD)/emulate.log || \
	  { cat $(BUILD)/emulate.log; exit 1; }
	@awk '/ cases, [0-9]+ reports$$/ { sub(/^[0-9]+: /, ""); print; cases += $$(NF-3); reports += $$(NF-1) } \
	  END { print cases " cases, " reports " reports" }' $(BUILD)/emulate.log
mutate: setup
	PATH="$(abspath $(VENV))/bin:$$PATH" $(RUN) tools/mutate.py $(MUTATE_ARGS)
pytest: setup
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# The other test files of the operator in tests/python/ops, if they exist: test_$(OP)_errors.py and so on.
OP_TESTS := $(wildcard $(foreach part,errors log_decay plan torch,tests/python/ops/test_$(OP)_$(part).py))
test-op: setup
	$(if $(ISA),RETNET_CPU=$(ISA)) $(RUN) -m pytest -n 2 $(if $(ISA),-m "not cuda") tests/python/ops/test_$(OP).py $(OP_TESTS) $(PYTEST_ARGS)

# The tests of linear and cross_entropy, and test_cpu_kernels.py, are not listed: they run on every instruction set
# themselves.
PATHS := retention retention_log_decay retention_step multi_scale_retention_step rotary gated_group_norm
paths: setup
	@sets=$$(cd tests/python && $(abspath $(RUN)) -c "from support.instruction_sets import *; print(*instruction_sets()[1:])") && \
	for set in $$sets; do \
	  echo "RETNET_CPU=$$set"; \
	  RETNET_CPU=$$set $(RUN) -m pytest -n 2 -m "not cuda" $(PATHS:%=tests/python/ops/test_%.py) || exit; \
	done

# The operators that have CUDA kernels, on the package of tests/on_simt. Without g++ on x86-64 it is not built.
ON_SIMT := $(BUILD)/on_simt
on-simt: tests-built
	@[ -d $(ON_SIMT) ] || { echo "make on-simt: $(ON_SIMT) was not built (the SIMT emulator needs g++ on x86-64)"; exit 0; }; \
	find $(BUILD)/tests/on_simt -name '*.gcda' -delete && \
	$(VENV)/bin/ctest --test-dir $(BUILD) --label-regex on_simt --output-on-failure && \
	RETNET_ON_SIMT=1 RETNET_CPU=portable PYTHONPATH=$(ON_SIMT) $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  -m "not cuda and not large" tests/python/on_simt $(PATHS:%=tests/python/ops/test_%.py) && \
	$(RUN) tools/line_coverage.py $(BUILD)/tests/on_simt csrc/ops/cuda csrc/nn/cuda

newest: setup
	RETNET_CMAKE_ARGS="-DRETNET_WERROR=$(WERROR) $$RETNET_CMAKE_ARGS" $(RUN) tools/matrix.py --torch $(NEWEST_TORCH) --python $(RUN) --folder build/newest --fresh
matrix: setup
	RETNET_CMAKE_ARGS="-DRETNET_WERROR=$(WERROR) $$RETNET_CMAKE_ARGS" $(RUN) tools/matrix.py --record $(if $(TORCHES),--torch $(TORCHES)) $(if $(PYTHONS),--python $(PYTHONS))

lint: $(VENV)/.tools$(CUDA)
	clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) tools/layers.py
	$(RUN) benchmarks/report.py --check

docs: setup
	@command -v doxygen >/dev/null || { echo "make docs: needs doxygen (apt-get install doxygen)" >&2; exit 1; }
	rm -rf build/docs build/doxygen
	$(RUN) -m sphinx -q -n -W --keep-going docs build/docs

kernels: $(VENV)/.tools$(CUDA)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S kernels/cuda -B build/architectures -G Ninja -DRETNET_WERROR=$(WERROR) -DPython_EXECUTABLE=$(abspath $(RUN)) "-DTORCH_CUDA_ARCH_LIST=$(ARCHITECTURES)"
	$(VENV)/bin/cmake --build build/architectures

kernel-report: kernels tests-built
	$(BUILD)/tests/kernels/cuda/kernel_counts > build/kernel_counts.json
	$(RUN) tools/kernel_report.py build/architectures build/kernel_counts.json

# Status 2: there is no device to run on.
ARCH ?= sm_90a
kernel-smoke:
	tools/kernel_smoke.sh $(ARCH) build/kernel_smoke
	build/kernel_smoke || [ $$? = 2 ]

bench: setup
	$(RUN) benchmarks/ops.py
	$(RUN) benchmarks/model.py
	$(RUN) benchmarks/linear.py
	$(RUN) benchmarks/twins.py
	$(RUN) benchmarks/report.py
results: setup
	$(RUN) benchmarks/report.py

gpu-wheels: $(VENV)/.tools$(CUDA)
	tools/gpu_wheels.sh $(VENV)

gpu-check:
	tools/gpu_check.sh $(STAGE)

clean:
	rm -rf build dist $(VENV)/.built* python/retnet/lib python/retnet/_C.*.so
