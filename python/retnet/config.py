# SPDX-License-Identifier: Apache-2.0
"""The configuration of a RetNet, with presets and a JSON form."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from retnet._files import hint
from retnet.ops import Norm, RotaryStyle
from retnet.state import RetNetState

__all__ = ["FORMAT_VERSION", "RetNetConfig"]

FORMAT_VERSION = 1
"""Version of the JSON form. A reader refuses a newer version."""

_LARGEST_SIZE = 2**31 - 1
_MOST_LAYERS = 65536
_CHOICES = {
    "rotary_style": ("interleaved", "half"),
    "group_norm": ("layer", "rms"),
    "norm": ("layer", "rms"),
    "activation": ("gelu", "swish"),
}
_NAMED_OR_LIST = {"decay": ("power2", "linspace"), "frequencies": ("retnet", "rope")}


@dataclass(frozen=True, kw_only=True)
class RetNetConfig:
    """Sizes and switches of a RetNet.

    The defaults of the switches follow the paper (Sun et al. 2023, arXiv 2307.08621). The sections
    and equations below are those of the paper.

    Raises:
        ValueError: a field has a value outside its range. The message names the field, the
            requirement and the value.

    Attributes:
        vocab_size: number of token ids. Every size is at most 2^31 - 1.
        embed_dim: d, the width of the residual stream.
        num_layers: L, at most 65536.
        num_heads: H, the number of heads in a layer.
        key_dim: K, the head size of queries and keys. It is even, because channels rotate in pairs.
        value_dim: V, the head size of values.
        ffn_dim: F, the inner size of the feed-forward network.
        decay: gamma of each head. "power2" gives 1 - 2^(-5-h) (Eq. 8). "linspace" gives
            1 - exp(linspace(ln 1/32, ln 1/512, H)) (section 3.1). A list gives H values of
            ln gamma, finite and <= 0.
        learnable_decay: learn ln gamma, which starts at these values. The parameter is
            `log_decay_raw` of `retnet.nn.MultiScaleRetention`.
        rotary_style: the channels that rotate together. They are (2i, 2i+1) for "interleaved" and
            (i, i + K/2) for "half".
        frequencies: radians per token of each pair. "retnet" gives 10000^(-i/(K/2-1)), as in
            torchscale. "rope" gives 10000^(-2i/K). A list gives K/2 finite values.
        decay_norm: multiply q_t by n_t^(-1/2), where n_t = sum_{i<=t} gamma^i. This is the
            D / sqrt(sum D) of section 2.2, "Retention Score Normalization".
        group_norm: kind of the head norm, which normalises the output of each head: "layer" or
            "rms".
        group_norm_eps: added to the variance in the head norm.
        group_norm_affine: the head norm has a weight [V], and a bias [V] if it is "layer". The
            heads share them.
        norm: kind of all other norms, "layer" or "rms".
        norm_eps: added to the variance in all other norms.
        pre_norm: normalise the input of each block (Eq. 9), and once more after all layers. If it
            is false, normalise after each residual sum.
        ffn_gated: the feed-forward network is down(act(gate x) * (up x)). If it is false, the
            network is down(act(up x)), as in the paper.
        ffn_inner_norm: normalise the F inner activations before down (torchscale calls it subln).
        activation: the function act of the feed-forward network, "gelu" (exact) or "swish".
        bias: the matrices of retention and of the feed-forward network have biases.
        residual_scale: factor on the residual branch (DeepNet calls it alpha).
        embed_scale: factor on the embeddings.
        embed_norm: normalise the scaled embeddings.
        tie_embeddings: the output matrix is the embedding, and the state dict has no lm_head.

    Example:
        >>> from retnet import RetNetConfig
        >>> config = RetNetConfig.preset("small", vocab_size=256, tie_embeddings=True)
        >>> config.num_layers, config.num_heads, config.key_dim
        (16, 4, 256)
        >>> RetNetConfig.from_json(config.to_json()) == config
        True
    """

    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    key_dim: int
    value_dim: int
    ffn_dim: int
    decay: str | tuple[float, ...] = "power2"
    learnable_decay: bool = False
    rotary_style: RotaryStyle = "interleaved"
    frequencies: str | tuple[float, ...] = "retnet"
    decay_norm: bool = True
    group_norm: Norm = "layer"
    group_norm_eps: float = 1e-6
    group_norm_affine: bool = False
    norm: Norm = "layer"
    norm_eps: float = 1e-6
    pre_norm: bool = True
    ffn_gated: bool = False
    ffn_inner_norm: bool = False
    activation: str = "gelu"
    bias: bool = False
    residual_scale: float = 1.0
    embed_scale: float = 1.0
    embed_norm: bool = False
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                _require(_is_int(value) and value > 0, field.name, "a positive integer", value)
                limit = _MOST_LAYERS if field.name == "num_layers" else _LARGEST_SIZE
                _require(value <= limit, field.name, f"<= {limit}", value)
            elif field.type == "bool":
                _require(isinstance(value, bool), field.name, "true or false", value)
            elif field.type == "float":
                ok = _is_number(value) and value > 0
                _require(ok, field.name, "a finite number > 0", value)
                object.__setattr__(self, field.name, float(value))
        _require(self.key_dim % 2 == 0, "key_dim", "even", self.key_dim)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            _require(value in choices, name, f"one of {_quoted(choices)}", value)
        self._check_list("decay", self.num_heads, "num_heads finite values of ln gamma <= 0")
        self._check_list("frequencies", self.key_dim // 2, "key_dim / 2 finite values")
        if not isinstance(self.decay, str):
            _require(max(self.decay) <= 0, "decay", "<= 0 (it is ln gamma)", list(self.decay))

    def _check_list(self, name: str, length: int, what: str) -> None:
        """Checks a field that is a name or a list of numbers, and stores a list as a tuple."""
        value = getattr(self, name)
        names = _NAMED_OR_LIST[name]
        need = f"one of {_quoted(names)} or {what} ({length})"
        if isinstance(value, str):
            _require(value in names, name, need, value)
            return
        _require(isinstance(value, (list, tuple)), name, need, value)
        _require(len(value) == length and all(map(_is_number, value)), name, need, list(value))
        object.__setattr__(self, name, tuple(float(x) for x in value))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> RetNetConfig:
        """Returns a named configuration.

        - "tiny" is the byte-level model of the demo.
        - "small" is the 200M model of the paper's ablations (section 3.4).
        - "1.3b", "2.7b" and "6.7b" are the models of the paper's Table 2.
        - "13b" follows the same rule at the width of the model in the paper's cost table. The rule
          is K = 256, V = 512 and F = 2d, so a layer has 12 d^2 parameters.

        The paper gives no vocabulary size. The presets other than "tiny" use 32000.

        Args:
            name: one of the names above.
            overrides: fields to replace.

        Raises:
            ValueError: there is no such name, or a field has a value outside its range.
        """
        if not isinstance(name, str) or name not in _PRESETS:
            raise ValueError(
                f"RetNetConfig.preset: name must be one of {_quoted(_PRESETS)}, got {name!r}"
            )
        return cls(**{**_PRESETS[name], **overrides})

    def to_json(self) -> str:
        """Returns the JSON text of config.json. It holds every field and format_version."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RetNetConfig:
        """Reads the JSON text that `to_json` wrote.

        Raises:
            ValueError: the text is not a JSON object, format_version is missing or newer, a field
                is unknown (the message suggests the nearest name) or missing, or a value is out of
                range.
        """
        try:
            data = json.loads(text.removeprefix("\ufeff"))  # a byte-order mark
        except (ValueError, RecursionError) as error:
            raise ValueError(f"RetNetConfig: text must be JSON, got {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"RetNetConfig: JSON must be an object, got {type(data).__name__}")
        version = data.pop("format_version", None)
        ok = _is_int(version) and 1 <= version <= FORMAT_VERSION
        _require(ok, "format_version", f"an integer in 1..{FORMAT_VERSION}", version)
        names = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - names)
        if unknown:
            near = hint(unknown[0], names)
            raise ValueError(f"RetNetConfig: JSON must hold known fields only, got {unknown}{near}")
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"RetNetConfig: JSON must hold every size, got {error}") from None

    def log_decay(self) -> torch.Tensor:
        """Returns ln gamma of each head, [H] float32 on the CPU."""
        cpu = torch.device("cpu")  # not the default device
        if not isinstance(self.decay, str):
            values = torch.tensor(self.decay, dtype=torch.float64, device=cpu)
        elif self.decay == "power2":
            heads = torch.arange(self.num_heads, dtype=torch.float64, device=cpu)
            values = torch.log1p(-torch.exp2(-5 - heads))
        else:
            ends = math.log(1 / 32), math.log(1 / 512)
            logs = torch.linspace(*ends, self.num_heads, dtype=torch.float64, device=cpu)
            values = torch.log1p(-logs.exp())
        return values.float()

    def rotary_frequencies(self) -> torch.Tensor:
        """Returns the rotary frequencies in radians per token, [K/2] float32 on the CPU."""
        pairs, cpu = self.key_dim // 2, torch.device("cpu")
        if not isinstance(self.frequencies, str):
            return torch.tensor(self.frequencies, dtype=torch.float32, device=cpu)
        if self.frequencies == "retnet":
            exponents = torch.linspace(0, 1, pairs, dtype=torch.float64, device=cpu)
        else:
            exponents = torch.arange(pairs, dtype=torch.float64, device=cpu) / pairs
        return torch.pow(10000.0, -exponents).float()

    def make_state(
        self,
        batch: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> RetNetState:
        """Returns the state before the first token. It is zero, at position 0.

        Args:
            batch: B, the number of sequences.
            device: the device of the state.
            dtype: float32, or float64 for a float64 model.

        Raises:
            ValueError: batch is not an integer >= 0.
        """
        if not (_is_int(batch) and batch >= 0):
            raise ValueError(f"make_state: batch must be an integer >= 0, got {batch!r}")
        shape = (self.num_layers, batch, self.num_heads, self.key_dim, self.value_dim)
        return RetNetState(
            torch.zeros(shape, device=device, dtype=dtype),
            torch.zeros(batch, device=device, dtype=torch.int64),
        )


def _paper(embed_dim: int, num_layers: int) -> dict[str, Any]:
    """Returns sizes by the paper's rule: K = 256, V = 512, F = 2d, the gammas of section 3.1."""
    return {
        "vocab_size": 32000,
        "embed_dim": embed_dim,
        "num_layers": num_layers,
        "num_heads": embed_dim // 256,
        "key_dim": 256,
        "value_dim": 512,
        "ffn_dim": 2 * embed_dim,
        "decay": "linspace",
    }


_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 256,
        "embed_dim": 128,
        "num_layers": 3,
        "num_heads": 4,
        "key_dim": 32,
        "value_dim": 64,
        "ffn_dim": 256,
        # gamma = 0.5, 0.78, 0.91, 0.97: half of what decides the next byte is within ten bytes.
        "decay": [-0.69, -0.25, -0.09, -0.0317],
    },
    "small": _paper(1024, 16),
    "1.3b": _paper(2048, 24),
    "2.7b": _paper(2560, 32),
    "6.7b": _paper(4096, 32),
    "13b": _paper(5120, 40),
}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Not math.isfinite, which raises on an integer beyond float64.
    return ok and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _require(ok: bool, field: str, requirement: str, value: object) -> None:
    if not ok:
        raise ValueError(f"RetNetConfig: {field} must be {requirement}, got {value!r}")
