# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures. Every test runs with uninitialised memory filled with NaN, which shows each
output element that an operator does not write.

Each worker of pytest-xdist takes whole files (--dist loadfile --no-loadscope-reorder), because the
tests of some files share a folder, a measurement or the results of an oracle.
"""

import os
from collections.abc import Callable, Iterator

import pytest
import torch

pytest.register_assert_rewrite("support")

from support.file_order import sort_by_file  # noqa: E402

# cuBLAS needs it in the strict mode below.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# A worker of pytest-xdist has one core for itself and for the processes that its tests start.
if "PYTEST_XDIST_WORKER" in os.environ and not torch.cuda.is_available():
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
else:
    torch.set_num_threads(2)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "not_poisoned: run with uninitialised memory as it is")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sort_by_file(items)


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fills what torch.empty returns, in Python and in C++, with NaN, or with the maximum for
    integers.
    """
    if request.node.get_closest_marker("not_poisoned"):
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def right_launches() -> Iterator[None]:
    """On the machine of tests/on_simt: no kernel was launched wrongly, whatever its result."""
    if "RETNET_ON_SIMT" not in os.environ:
        yield
        return
    from support.on_simt import take_findings

    yield
    assert take_findings() == []


@pytest.fixture
def strictly_deterministic() -> Iterator[None]:
    """Runs the test under torch.use_deterministic_algorithms(True). The fixture above sets
    warn_only, under which no batch entry is computed separately, so all other tests check the
    batched code.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Runs the test on the CPU and, if there is one, on the GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(request.param)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Returns a function that sets the number of torch's threads for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Uses one thread. On a busy machine, two threads wait for each other longer than tiny models
    compute.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda)])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    """Returns a GPU that runs every kernel."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("a GPU below compute capability 8.0")
    return torch.device(request.param)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes retnet.ops.linear use oneDNN on any CPU for which torch has it."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setenv("RETNET_CPU_LINEAR", "1")
    # On an Arm CPU without bfloat16, torch turns oneDNN off for good at its first bfloat16 product.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)
