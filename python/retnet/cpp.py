# SPDX-License-Identifier: Apache-2.0
"""The C++ modules of `retnet::nn` as torch modules.

Each module has the same options, the same state-dict keys and the same results as the module of the
same name in `retnet.nn`. Its parameters are the tensors that C++ holds. `state_dict`,
`load_state_dict`, optimizers, `.to()`, `apply`, `train`, copies, pickles and
DistributedDataParallel are therefore torch's own code.

C++ calls the children of a module itself. This has two consequences:

- Hooks fire only on the module that Python calls. It raises if you register a hook on a child or
  replace the `forward` of a child.
- If a parameter or a child is removed or replaced by another object, C++ still holds the old one.
  The next call then raises. Assignment, `load_state_dict(assign=True)`,
  `torch.func.functional_call` and a move to the meta device replace parameters.

Modules and parameters may be added.
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
from retnet.nn.loss import Reduction
from retnet.nn.retention_constants import RetentionConstants, WithDecay
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
    """Holds the parameters of a C++ child under the name of the child."""

    def _refuse_hook(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            "retnet.cpp: a hook of a child would never fire, since C++ calls the children; "
            "register it on the module that Python calls, or use retnet.nn"
        )

    register_forward_hook = _refuse_hook
    register_forward_pre_hook = _refuse_hook
    register_backward_hook = _refuse_hook
    register_full_backward_hook = _refuse_hook
    register_full_backward_pre_hook = _refuse_hook

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            raise RuntimeError(
                "retnet.cpp: a child's forward would never be called, since C++ calls the "
                "children; replace the forward of the module that Python calls, or use retnet.nn"
            )
        super().__setattr__(name, value)


class _Retention(WithDecay, _Child):
    """Holds the parameters of a MultiScaleRetention."""

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        self.config = config
        self._constants = RetentionConstants(config)


class CppModule(nn.Module):
    """A C++ module whose parameters are in a tree of torch modules.

    Args:
        config: sizes and switches.
        device: device of the parameters, by default torch's default.
        dtype: dtype of the parameters, by default torch's default.

    Example:
        >>> import torch, retnet.cpp
        >>> config = retnet.RetNetConfig(
        ...     vocab_size=256, embed_dim=64, num_layers=2, num_heads=4, key_dim=16, value_dim=32,
        ...     ffn_dim=128,
        ... )
        >>> model = retnet.cpp.RetNetForCausalLM(config)
        >>> model.state_dict().keys() == retnet.nn.RetNetForCausalLM(config).state_dict().keys()
        True
        >>> model(torch.zeros(1, 8, dtype=torch.long)).logits.shape
        torch.Size([1, 8, 256])
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
        # The tree that C++ knows: (full name, parent module, name in the parent, child). None means
        # that this module is the parent, so that a shallow copy is not confused with it.
        self._children: list[tuple[str, nn.Module | None, str, nn.Module]] = []
        self._adopted: list[tuple[str, nn.Module | None, str, Tensor]] = []
        for name, parameter in self._native.named_parameters():
            parameter.__class__ = nn.Parameter  # the same tensor: C++ holds it too
            *path, leaf = name.split(".")
            module: nn.Module = self
            for depth, part in enumerate(path, start=1):
                parent = None if module is self else module
                if part not in module._modules:
                    module.add_module(part, _Retention(config) if part == "retention" else _Child())
                    child = module.get_submodule(part)
                    self._children.append((".".join(path[:depth]), parent, part, child))
                module = module.get_submodule(part)
            module.register_parameter(leaf, parameter)
            self._adopted.append((name, None if module is self else module, leaf, parameter))

    def reset_parameters(self) -> None:
        """Reinitialises every parameter."""
        self._checked().reset_parameters()

    def _checked(self) -> Any:
        """Returns the C++ module, after checking that it holds the parameters of this one."""
        for name, parent, part, child in self._children:
            if (parent or self)._modules.get(part) is not child:
                self._refuse("module", name)
        for name, parent, leaf, parameter in self._adopted:
            if (parent or self)._parameters.get(leaf) is not parameter:
                self._refuse("parameter", name)
        self._native.train(self.training)
        return self._native

    def _refuse(self, kind: str, name: str) -> NoReturn:
        raise RuntimeError(
            f"{type(self).__name__}: {kind} {name} was replaced by another object or removed, "
            "which C++ does not see; copy values into the parameters instead (load_state_dict, "
            "copy_), or use retnet.nn"
        )

    def _own(self) -> tuple[dict[str, Any], dict[str, nn.Module], dict[str, Any]]:
        """Returns what C++ does not hold: attributes, and added modules and parameters."""
        own = {"_native", "_children", "_adopted", "_modules", "_parameters"}
        rest = {name: value for name, value in self.__dict__.items() if name not in own}
        children = {part for _, parent, part, _ in self._children if parent is None}
        adopted = {leaf for _, parent, leaf, _ in self._adopted if parent is None}
        modules = {name: m for name, m in self._modules.items() if name not in children}
        parameters = {name: p for name, p in self._parameters.items() if name not in adopted}
        return rest, modules, parameters  # type: ignore[return-value]

    def __reduce__(self) -> tuple[Any, ...]:
        self._checked()
        tensors = [(p.detach(), p.requires_grad) for *_, p in self._adopted]
        return _rebuild, (type(self), self.config, tensors, self._own())

    def __deepcopy__(self, memo: dict[int, Any]) -> CppModule:
        self._checked()
        tensors = []
        for name, _, _, parameter in self._adopted:
            if id(parameter) in memo:
                raise RuntimeError(
                    f"{type(self).__name__}: must be copied before any object that refers to its "
                    f"parameters, such as an optimizer; {name} was already copied"
                )
            tensors.append((parameter.detach().clone(), parameter.requires_grad))
        made = _rebuild(type(self), self.config, tensors, ({}, {}, {}))
        memo[id(self)] = made
        for (*_, old), (*_, new) in zip(self._adopted, made._adopted, strict=True):
            memo[id(old)] = new
        _restore(made, copy.deepcopy(self._own(), memo))
        return made


def _rebuild(
    cls: type[CppModule],
    config: RetNetConfig,
    tensors: list[tuple[Tensor, bool]],
    own: tuple[dict[str, Any], dict[str, nn.Module], dict[str, Any]],
) -> CppModule:
    module = cls(config)
    for (*_, parameter), (tensor, requires_grad) in zip(module._adopted, tensors, strict=True):
        parameter.data = tensor  # with its dtype and device
        parameter.requires_grad_(requires_grad)
    _restore(module, own)
    return module


def _restore(
    module: CppModule, own: tuple[dict[str, Any], dict[str, nn.Module], dict[str, Any]]
) -> None:
    rest, modules, parameters = own
    module.__dict__.update(rest)
    for *_, child in module._children:
        child.training = module.training
    module._modules.update(modules)
    module._parameters.update(parameters)


class _Pointwise(CppModule):
    def forward(self, x: Tensor) -> Tensor:
        """Runs the module on x [..., d]. Returns the same shape."""
        return self._checked().forward(x)


class LayerNorm(_Pointwise):
    """The norm of the blocks in `retnet.nn`, LayerNorm or RMSNorm."""

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
        """Runs the layer on x [B, T, d]. Returns the output and the state [B, H, K, V]."""
        return self._checked().forward(x, state, positions, cu_seqlens, form, inplace)


class MultiScaleRetention(WithDecay, _Layer):
    """`retnet.nn.MultiScaleRetention`, with the same call."""

    _native_class = _C.MultiScaleRetention

    def __init__(self, config: RetNetConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self._constants = RetentionConstants(config)


class DecoderLayer(_Layer):
    """`retnet.nn.DecoderLayer`, with the same call."""

    _native_class = _C.DecoderLayer


class _Body(CppModule):
    """What RetNet and RetNetForCausalLM share.

    Attributes:
        checkpoint_layers: see `retnet.nn.RetNet`.
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
        """Runs the body on input_ids [B, T]. Returns hidden states [B, T, d] and the state."""
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
        targets: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> CausalLMOutput:
        """Runs the model on input_ids [B, T]. See `retnet.nn.RetNetForCausalLM`."""
        start = _tensors_of(state)
        logits, loss, state_after = self._checked().forward(
            input_ids, start, cu_seqlens, labels, form, inplace, last_only, targets, reduction
        )
        return CausalLMOutput(logits, loss, RetNetState(*state_after))

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors. See `retnet.nn.RetNetForCausalLM.save`."""
        checkpoint.write(folder, self.config, self.state_dict())

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
        """Continues each prompt, in C++. Arguments and texts are those of `retnet.generation`."""
        return self._checked().generate(
            list(prompts), max_new_tokens, temperature, top_k, top_p, list(stop_tokens), seed
        )


def _tensors_of(state: RetNetState | None) -> tuple[Tensor, Tensor] | None:
    return None if state is None else (state.retention, state.positions)
