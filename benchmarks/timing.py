# SPDX-License-Identifier: Apache-2.0
"""Time and memory of calls: alternating rounds, medians and spreads."""

import ctypes
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

Call = Callable[[], object]
FLUSH_BYTES = 256 << 20  # larger than the L2 cache of every GPU so far
FEW_FAULTS = 8  # page faults, each of which may clear 2 MB


@dataclass(frozen=True)
class Spread:
    """Order statistics of the times of one contender, in seconds."""

    rounds: int
    median: float
    minimum: float
    q1: float
    q3: float
    maximum: float

    @classmethod
    def of(cls, times: list[float]) -> "Spread":
        """Computes them from at least one time. Quartiles interpolate between order statistics."""
        if len(times) == 1:
            q1 = q3 = times[0]
        else:
            q1, _, q3 = quantiles(times, n=4, method="inclusive")
        return cls(len(times), median(times), min(times), q1, q3, max(times))


def rounds_within(seconds: float, one_call: float, least: int = 3, most: int = 30) -> int:
    """Returns how many calls of ``one_call`` seconds to time in ``seconds``."""
    return max(least, min(most, int(seconds / max(one_call, 1e-9))))


class Clock:
    """Times single calls on a device, in seconds.

    On CUDA it uses events, after the L2 cache was overwritten. While that runs, the host gets ahead
    with launching. On the CPU it uses the clock of the host.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            self.flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device)
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __call__(self, call: Call) -> float:
        """Returns the time of one call."""
        if not self.cuda:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = self.events
        self.flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def settle(call: Call, most: int = 4, seconds: float = 10.0) -> None:
    """Repeats a call until the memory that it needs is mapped, at most ``most`` times and not after
    ``seconds``. What peak_memory gave back to the system is faulted in again, and the first calls
    may all do so, because large blocks move.
    """
    start = time.perf_counter()
    for _ in range(most):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        if faults < FEW_FAULTS or time.perf_counter() - start > seconds:
            return


def alternate(
    calls: Mapping[str, Call],
    rounds: Mapping[str, int],
    clock: Callable[[Call], float],
    on_error: Callable[[str, Exception], None],
) -> dict[str, list[float]]:
    """Returns the times of all calls, taken in turns, so that other load on the machine affects all
    alike.

    Each call settles first and then takes part in its number of rounds, spread over all of them. A
    call that raises is reported to ``on_error`` and left out from then on.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    failed: set[str] = set()
    most = max(rounds.values(), default=0)
    for turn in range(-1, most):
        for name, call in list(calls.items()):  # on_error may have removed one
            due = turn < 0 or turn * rounds[name] // most >= len(times[name])
            if name in failed or not due:
                continue
            try:
                if turn < 0:
                    settle(call)
                else:
                    times[name].append(clock(call))
            except Exception as error:
                failed.add(name)
                on_error(name, error)
    return {name: taken for name, taken in times.items() if name not in failed}


def peak_memory(call: Call, device: torch.device) -> tuple[int | None, float]:
    """Returns the bytes that one call adds to what was in use before it, and its time in seconds.

    On CUDA this is the peak of the allocator. On the CPU it is the growth of the resident memory of
    the process, after freed memory went back to the system. It is None if the system does not let
    it be measured.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        result = call()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        del result
        return torch.cuda.max_memory_allocated() - before, seconds
    measurable = _forget_resident_peak()
    before_resident = _resident("VmRSS")
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    peak = _resident("VmHWM")
    if not measurable or before_resident is None or peak is None:
        return None, seconds
    return max(0, peak - before_resident), seconds


def _forget_resident_peak() -> bool:
    """Returns freed memory to the system and resets the peak of resident memory."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except (OSError, AttributeError):
        return False
    return True


def _resident(field: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            values = dict(line.split(":", 1) for line in file)
        return int(values[field].split()[0]) * 1024
    except (OSError, KeyError):
        return None
