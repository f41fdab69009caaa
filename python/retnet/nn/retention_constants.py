# SPDX-License-Identifier: Apache-2.0
"""What a retention layer needs besides its weights: ln gamma of each head, rotary frequencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from retnet._decay import check_log_decay, log_decay_of, raw_of, reference_of
from retnet.config import RetNetConfig

__all__ = ["RetentionConstants", "WithDecay"]


class RetentionConstants:
    """float32 values that follow from a configuration, computed once for each device that asks.

    They are not buffers. FSDP and `to(dtype)` would round buffers to 16 bits. Code that fills a
    model made on the meta device would leave them undefined.
    """

    def __init__(self, config: RetNetConfig) -> None:
        self._config = config
        self._made: dict[tuple[str, torch.device], Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RetentionConstants, (self._config,)  # a copy may move to another device

    def log_decay(self, device: torch.device) -> Tensor:
        """Returns ln gamma, [H] float32."""
        return self._get("log_decay", RetNetConfig.log_decay, device)

    def reference(self, device: torch.device) -> Tensor:
        """Returns the reference of a learnable ln gamma, [H] float64, finite and negative."""
        return self._get("reference", reference_of, device)

    def frequencies(self, device: torch.device) -> Tensor:
        """Returns the rotary frequencies, [K/2] float32."""
        return self._get("frequencies", RetNetConfig.rotary_frequencies, device)

    def _get(
        self, name: str, make: Callable[[RetNetConfig], Tensor], device: torch.device
    ) -> Tensor:
        value = self._made.get((name, device))
        if torch.compiler.is_dynamo_compiling():  # what is traced here cannot be kept
            return make(self._config).to(device) if value is None else value
        mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
        if mode is not None and not mode.allow_non_fake_inputs:
            return make(self._config).to(device)  # fake, as the mode requires
        if value is None:
            # Leave inference mode: a later call may have to save the value for backward.
            with torch.inference_mode(False):
                with _disable_current_modes():
                    value = make(self._config)
                value = value.to(device)
            if type(value) is Tensor:  # torch.export may trace for a device that is not there
                self._made[name, device] = value
        return value


class WithDecay(nn.Module):
    """A module of `config` with decays. It has the parameter `log_decay_raw` [H] if learnable.

    The parameter and its gradient stay float32 in `to(dtype)`. The module also reads a state dict
    of an older version, which has `log_decay` instead.
    """

    config: RetNetConfig
    log_decay_raw: nn.Parameter
    _constants: RetentionConstants

    @property
    def log_decay(self) -> Tensor:
        """ln gamma of each head, [H] float32, on the device of the parameters."""
        return self._log_decay(_device_of(self))

    @property
    def frequencies(self) -> Tensor:
        """Rotary frequencies in radians per token, [K/2] float32, on the parameters' device."""
        return self._constants.frequencies(_device_of(self))

    def _log_decay(self, device: torch.device) -> Tensor:
        """Returns ln gamma on `device`. A learnable one is on the device of its parameter."""
        if not self.config.learnable_decay:
            return self._constants.log_decay(device)
        raw = self.log_decay_raw
        return log_decay_of(raw, self._constants.reference(raw.device))

    def _make_constants(self) -> None:
        """Computes the constants now, so that a CUDA graph may record the first call."""
        device = _device_of(self)
        self._constants.frequencies(device)
        if self.config.learnable_decay:
            self._constants.reference(device)
        else:
            self._constants.log_decay(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WithDecay:
        raw = self._parameters.get("log_decay_raw")

        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if raw is not None and (tensor is raw or tensor is raw.grad):
                return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
            return moved

        super()._apply(keep_float32, recurse)
        self._make_constants()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        old, new = f"{prefix}log_decay", f"{prefix}log_decay_raw"
        if self.config.learnable_decay and old in state_dict and new not in state_dict:
            value = state_dict.pop(old)
            if value.shape == self.log_decay_raw.shape:  # else torch reports the shapes
                check_log_decay(old, value)
                value = raw_of(value, self._constants.reference(value.device))
            state_dict[new] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _device_of(module: nn.Module) -> torch.device:
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
