# SPDX-License-Identifier: Apache-2.0
"""The C++ modules of `retnet::nn` as torch modules.

Each has the options, the state-dict keys and the numbers of its twin in `retnet.nn`. Parameters are
C++'s own tensors, so that `state_dict`, `load_state_dict`, optimizers, `.to()`, `apply`, `train`,
copies, pickles and DistributedDataParallel are torch's own code on them.

C++ calls the children of a module itself. Hooks therefore fire on the module that Python calls, and
registering one on a child raises. A parameter that is replaced by another object (assignment,
`load_state_dict(assign=True)`, `torch.func.functional_call`, `to_empty`, a move to the meta device)
would leave C++ with the old one: the next call raises.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from retnet import _C, checkpoint
from retnet.config import RetNetConfig
from retnet.nn.causal_lm import CausalLMOutput
from retnet.ops import Form
from retnet.state import RetNetState

__all__ = [
    "CppModule",
    "DecoderLayer",
    "FeedForward",
    "LayerNorm",
    "MultiScaleRetention",
    "RetNet",
    "RetNetForCausalLM",
]


class _Child(nn.Module):
    """Holds the parameters of a C++ child under its name."""

    def _refuse_hook(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            "retnet.cpp: a hook of a child would never fire, since C++ calls the children; "
            "register it on the module that Python calls, or use retnet.nn"
        )

    register_forward_hook = _refuse_hook
    register_forward_pre_hook = _refuse_hook
    register_full_backward_hook = _refuse_hook
    register_full_backward_pre_hook = _refuse_hook


class CppModule(nn.Module):
    """A C++ module with its parameters in a tree of torch modules.

    Args:
        config: sizes and switches.
        device: where the parameters are made.
        dtype: of the parameters, by default torch's default.

    Example:
        >>> import torch
        >>> import retnet.cpp
        >>> import retnet.nn
        >>> config = retnet.RetNetConfig.preset("tiny")
        >>> model = retnet.cpp.RetNetForCausalLM(config)
        >>> twin = retnet.nn.RetNetForCausalLM(config)
        >>> twin.load_state_dict(model.state_dict())
        <All keys matched successfully>
        >>> tokens = torch.randint(256, (2, 50))
        >>> torch.allclose(model(tokens).logits, twin(tokens).logits, atol=1e-4)
        True
    """

    _native_class: Any

    def __init__(
        self,
        config: RetNetConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self._native = self._native_class(
            asdict(config),
            torch.device(device) if device is not None else torch.get_default_device(),
            dtype if dtype is not None else torch.get_default_dtype(),
        )
        # Where each parameter hangs, its name there, and C++'s tensor.
        self._adopted: list[tuple[nn.Module, str, Tensor]] = []
        for name, parameter in self._native.named_parameters():
            parameter.__class__ = nn.Parameter  # the same tensor: C++ holds it too
            *path, leaf = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, _Child())
                module = module.get_submodule(part)
            module.register_parameter(leaf, parameter)
            self._adopted.append((module, leaf, parameter))

    def reset_parameters(self) -> None:
        """Initialises every parameter anew."""
        self._checked().reset_parameters()

    def _checked(self) -> Any:
        """The C++ module, once it is known to hold the parameters of this one."""
        for module, leaf, parameter in self._adopted:
            if module._parameters.get(leaf) is not parameter:
                name = next(n for n, m in self.named_modules() if m is module)
                raise RuntimeError(
                    f"{type(self).__name__}: parameter {f'{name}.{leaf}'.lstrip('.')} was replaced "
                    "by another object, which C++ does not see; copy values into the parameter "
                    "instead (load_state_dict, copy_), or use retnet.nn"
                )
        self._native.train(self.training)
        return self._native

    def _apply(self, fn: Any, recurse: bool = True) -> CppModule:
        # A learnable ln gamma keeps its dtype, whatever `to(dtype)` does.
        decays = [(p, p.data) for name, p in self.named_parameters() if name.endswith("log_decay")]
        super()._apply(fn, recurse)
        for parameter, values in decays:
            parameter.data = values.to(parameter.device)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        own = {"_native", "_adopted", "_modules", "_parameters"}
        rest = {name: value for name, value in self.__dict__.items() if name not in own}
        tensors = [(p.detach(), p.requires_grad) for p in self.parameters()]
        return _rebuild, (type(self), self.config, tensors, rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> CppModule:
        function, (cls, config, tensors, rest) = self.__reduce__()
        tensors = [(tensor.clone(), requires_grad) for tensor, requires_grad in tensors]
        made = function(cls, config, tensors, copy.deepcopy(rest, memo))
        memo[id(self)] = made
        return made


def _rebuild(
    cls: type[CppModule],
    config: RetNetConfig,
    tensors: list[tuple[Tensor, bool]],
    rest: dict[str, Any],
) -> CppModule:
    module = cls(config)
    for parameter, (tensor, requires_grad) in zip(module.parameters(), tensors, strict=True):
        parameter.data = tensor  # with its dtype and device
        parameter.requires_grad_(requires_grad)
    module.__dict__.update(rest)
    return module


class _Pointwise(CppModule):
    def forward(self, x: Tensor) -> Tensor:
        """Runs the module over x [..., d]; returns the same shape."""
        return self._checked().forward(x)


class LayerNorm(_Pointwise):
    """The norm of `retnet.nn`'s blocks, LayerNorm or RMSNorm."""

    _native_class = _C.LayerNorm


class FeedForward(_Pointwise):
    """`retnet.nn.FeedForward`, with the same call."""

    _native_class = _C.FeedForward


class _Layer(CppModule):
    def forward(
        self,
        x: Tensor,
        *,
        state: Tensor | None = None,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        form: Form = "chunkwise",
        inplace: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Runs the layer over x [B, T, d]; returns the output and the state [B, H, K, V]."""
        return self._checked().forward(x, state, positions, cu_seqlens, form, inplace)


class MultiScaleRetention(_Layer):
    """`retnet.nn.MultiScaleRetention`, with the same call."""

    _native_class = _C.MultiScaleRetention


class DecoderLayer(_Layer):
    """`retnet.nn.DecoderLayer`, with the same call."""

    _native_class = _C.DecoderLayer


class _Body(CppModule):
    """What RetNet and RetNetForCausalLM share.

    Attributes:
        checkpoint_layers: as of `retnet.nn.RetNet`.
    """

    checkpoint_layers = False

    def _checked(self) -> Any:
        native = super()._checked()
        native.checkpoint_layers = self.checkpoint_layers
        return native


class RetNet(_Body):
    """`retnet.nn.RetNet`, with the same call."""

    _native_class = _C.RetNet

    def forward(
        self,
        input_ids: Tensor,
        *,
        state: RetNetState | None = None,
        cu_seqlens: Tensor | None = None,
        form: Form = "chunkwise",
        inplace: bool = False,
    ) -> tuple[Tensor, RetNetState]:
        """Runs the body over input_ids [B, T]; returns hidden states [B, T, d] and the state."""
        hidden, state_after = self._checked().forward(
            input_ids, _tensors_of(state), cu_seqlens, form, inplace
        )
        return hidden, RetNetState(*state_after)


class RetNetForCausalLM(_Body):
    """`retnet.nn.RetNetForCausalLM`, with the same call."""

    _native_class = _C.RetNetForCausalLM

    def forward(
        self,
        input_ids: Tensor,
        *,
        state: RetNetState | None = None,
        cu_seqlens: Tensor | None = None,
        labels: Tensor | None = None,
        form: Form = "chunkwise",
        inplace: bool = False,
        last_only: bool = False,
    ) -> CausalLMOutput:
        """Runs the model over input_ids [B, T]; see `retnet.nn.RetNetForCausalLM`."""
        logits, loss, state_after = self._checked().forward(
            input_ids, _tensors_of(state), cu_seqlens, labels, form, inplace, last_only
        )
        return CausalLMOutput(logits, loss, RetNetState(*state_after))

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, as `retnet.nn.RetNetForCausalLM.save`."""
        checkpoint.save(folder, self)

    def generate(
        self,
        prompts: Tensor | Sequence[Tensor],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_tokens: Sequence[int] = (),
        seed: int | None = None,
    ) -> list[Tensor]:
        """Continues each prompt, in C++; arguments and texts are those of `retnet.generation`."""
        return self._checked().generate(
            list(prompts), max_new_tokens, temperature, top_k, top_p, list(stop_tokens), seed
        )


def _tensors_of(state: RetNetState | None) -> tuple[Tensor, Tensor] | None:
    return None if state is None else (state.retention, state.positions)
