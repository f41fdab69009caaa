# SPDX-License-Identifier: Apache-2.0
"""Runs decode steps on fixed memory, on CUDA as a graph."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from retnet.nn import RetNetForCausalLM
from retnet.state import RetNetState

WARM_UP = 2  # steps before recording, which load handles, workspaces and kernels

# Modules that do the same work at every step.
_KNOWN = ("torch.nn.modules.", "retnet.nn.", "retnet.cpp")

_logger = logging.getLogger(__name__)


class DecodeStep:
    """Reads one token of each sequence and returns the logits of the next token.

    Tokens, state and logits stay in the same memory at every step. On CUDA, the steps after the
    first `WARM_UP` can therefore replay a CUDA graph of the whole model, which takes one launch
    instead of some hundreds. If a graph is not possible, each step is launched as usual and the
    reason is logged once.

    Args:
        model: model that takes the steps.
        state: state after the tokens that were read. The steps update it in place.
    """

    def __init__(self, model: RetNetForCausalLM, state: RetNetState) -> None:
        self._model = model
        self._state = state
        batch_size, device = state.positions.shape[0], state.positions.device
        self._ids = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        self._logits = torch.empty(0, device=device)
        self._replay: Callable[[], None] | None = None
        self._until_record = WARM_UP if has_graphs(device) else -1  # -1: never

    def __call__(self, ids: Tensor) -> Tensor:
        """Reads ids [N, 1]. Returns logits [N, 1, vocab], which the next call overwrites."""
        self._ids.copy_(ids)
        if self._until_record == 0:
            self._record()
        if self._replay is not None:
            self._replay()
        elif self._until_record > 0:
            self._until_record -= 1
            beside(self._step, self._ids.device)
        else:
            self._step()
        return self._logits

    def _step(self) -> None:
        self._logits = self._model(self._ids, state=self._state, inplace=True).logits

    def _record(self) -> None:
        self._until_record = -1
        device = self._ids.device
        reason = graph_unsupported_reason(self._model, device)
        if reason is None:
            try:
                self._replay = record(self._step, device)
            except RuntimeError as error:  # includes errors of CUDA; the state is unchanged
                reason = f"recording it failed: {_first_line(error)}"
        if reason is not None:
            say_once(reason)


def has_graphs(device: torch.device) -> bool:
    """Returns whether steps on this device should be recorded."""
    return device.type == "cuda"


def beside(step: Callable[[], None], device: torch.device) -> None:
    """Runs `step` on its own stream, as a recording does.

    It runs after all earlier work on the current stream and before all later work.
    """
    current = torch.cuda.current_stream(device)
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        torch.cuda.current_stream().wait_stream(current)
        step()
        current.wait_stream(torch.cuda.current_stream())


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Records what `step` launches without running it. Returns a function that replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        current = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                step()
        finally:
            torch.cuda.set_stream(current)  # torch does not do this if the recording fails
    return graph.replay


def graph_unsupported_reason(model: nn.Module, device: torch.device) -> str | None:
    """Returns why a step of the model cannot be recorded, or None if no reason is known yet.

    A graph repeats kernels and not Python. Unknown code may do something else at each step, or
    run on the CPU.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "global forward hooks are registered"
    for name, child in model.named_modules():
        where = f"module {name}" if name else "the model"
        if child._forward_hooks or child._forward_pre_hooks:
            return f"{where} has forward hooks, which a graph would not run"
        if "forward" in vars(child):
            return f"the forward method of {where} was replaced"
        kind = type(child)
        if not f"{kind.__module__}.".startswith(_KNOWN):
            return f"{where} is a {kind.__module__}.{kind.__qualname__}, not of torch.nn or retnet"
    for name, tensor in _tensors(model):
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"{name} is a {type(tensor).__module__}.{type(tensor).__qualname__}"
        if tensor.device != device:
            return f"{name} is on {tensor.device}, the prompts on {device}"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on; its casts of the weights may be freed before the graph replays"
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "another graph is being recorded"
    return None


def _first_line(error: BaseException) -> str:
    """Returns the first line of the original error.

    The end of a failed recording raises another error.
    """
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


@functools.lru_cache(maxsize=256)
def say_once(reason: str) -> None:
    """Logs why decoding continues without a graph."""
    _logger.warning("generate: decodes without a CUDA graph: %s", reason)
