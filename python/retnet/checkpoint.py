# SPDX-License-Identifier: Apache-2.0
"""Saves a model to the two files of `retnet.weights` and loads it from them.

A checkpoint holds only weights and no pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from retnet._files import WEIGHT_DTYPES
from retnet.config import RetNetConfig
from retnet.nn import RetNetForCausalLM
from retnet.nn.causal_lm import weight_shapes
from retnet.weights import (
    CONFIG,
    WEIGHTS,
    Kind,
    check_folder,
    kinds_of,
    open_weights,
    read_config,
    read_metadata,
    stored_names,
    write_checkpoint,
)

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "Kind",
    "check_folder",
    "check_weights",
    "kinds_of",
    "load",
    "read_config",
    "read_metadata",
    "save",
    "write",
]


def save(folder: str | Path, model: RetNetForCausalLM) -> None:
    """Writes the configuration and the weights of a model; see `write`."""
    write(folder, model.config, model.state_dict())


def write(
    folder: str | Path,
    config: RetNetConfig,
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a checkpoint. The folder is made if it does not exist.

    Args:
        folder: where config.json and model.safetensors go. Weights of the same configuration
            are replaced.
        config: configuration of the model.
        state_dict: the result of `RetNetForCausalLM.state_dict()`, on any device. It may come from
            an older version. A tied lm_head.weight is left out. The state dict of a sharded model
            must be gathered first, with get_model_state_dict of
            torch.distributed.checkpoint.state_dict and the options full_state_dict and
            cpu_offload.
        metadata: text to keep in the header of model.safetensors.

    Raises:
        ValueError: the keys or shapes are not those of the configuration, a dtype is none of
            float64, float32, float16 and bfloat16, or the tensors are shards.
        FileExistsError: the folder holds a checkpoint of another configuration, or other files
            with these names.
        OSError: the files could not be written. The old checkpoint is intact.
    """
    write_checkpoint(Path(folder), config, weight_shapes(config), state_dict, metadata)


def load(
    folder: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> RetNetForCausalLM:
    """Reads a checkpoint.

    Older versions wrote `log_decay`, which is ln gamma itself. From it `load` computes the
    `log_decay_raw` that gives this ln gamma, within a relative error of
    2^-24 (1 + abs(log_decay_raw)).

    Args:
        folder: folder that `save` wrote.
        device: device of the model. None means the CPU.
        dtype: dtype of the weights. None means that of embed_tokens.weight in the file.

    Raises:
        FileNotFoundError: the folder or one of its two files does not exist.
        ValueError: one of these, and the message names the file and what is wrong:

            - the file is corrupt, truncated or of another kind;
            - its format_version is newer;
            - keys or shapes are not those of config.json;
            - weights have another dtype than float64, float32, float16 and bfloat16, as in a
              quantised model;
            - an old `log_decay` is above 0 or NaN;
            - `dtype` is none of the four.

    Example:
        >>> import torch
        >>> import retnet
        >>> from retnet.nn import RetNetForCausalLM
        >>> RetNetForCausalLM(retnet.RetNetConfig.preset("tiny")).save("model")
        >>> model = retnet.load("model", dtype=torch.bfloat16)
        >>> model.lm_head.weight.dtype
        torch.bfloat16
    """
    if dtype is not None and dtype not in WEIGHT_DTYPES.values():
        raise ValueError(
            f"retnet.load: dtype must be float64, float32, float16 or bfloat16, got {dtype}"
        )
    folder = Path(folder)
    config = read_config(folder)
    with open_weights(folder, config, weight_shapes(config)) as (stored_dtype, read):
        model = RetNetForCausalLM(config, device="meta", dtype=dtype or stored_dtype)
        model.to_empty(device=device or "cpu")
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(read(name))
    return model


def check_weights(path: Path, config: RetNetConfig, kinds: Mapping[str, Kind]) -> dict[str, str]:
    """Checks that names, shapes and dtypes are those of a model of `config`.

    Args:
        path: the file, which the message names.
        config: configuration of the model.
        kinds: dtypes and shapes of the tensors in the file.

    Returns:
        The name under which `kinds` holds each tensor of the model. It is its own name, except that
        older versions stored `log_decay` for `log_decay_raw`.

    Raises:
        ValueError: names, shapes or dtypes are not those of the model.
    """
    return stored_names(path, weight_shapes(config), kinds)
