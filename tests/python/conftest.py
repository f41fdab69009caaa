# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures. Every test runs with uninitialised memory filled with NaN, so that an output
element which an operator does not write shows.

Several workers of pytest-xdist take whole files (--dist loadfile --no-loadscope-reorder): some
share a folder, a measurement or an oracle's results among their tests."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch

pytest.register_assert_rewrite("support")

from support.file_order import sort_by_file  # noqa: E402

# Without it cuBLAS raises in the strict mode below.
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
    """Fills what torch.empty returns, in Python and in C++, with NaN (integers: the maximum)."""
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
    """torch.use_deterministic_algorithms(True). The fixture above sets it with warn_only, by which
    no row of a batch is computed apart: all other tests see the batched code."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU and, where there is one, the GPU: the same tables run on both."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(request.param)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine two threads wait for each other longer than tiny models compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda)])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    """A GPU that runs every kernel."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("a GPU below compute capability 8.0")
    return torch.device(request.param)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """retnet.ops.linear by oneDNN on any CPU for which torch has it."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setenv("RETNET_CPU_LINEAR", "1")
    # On an Arm without bfloat16 torch turns it off for good at its first product of bfloat16.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)
