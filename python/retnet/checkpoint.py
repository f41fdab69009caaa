# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder with config.json and model.safetensors. Weights only, no pickle.

config.json is `RetNetConfig.to_json`; model.safetensors holds the state dict of
`RetNetForCausalLM` under its own keys, tied weights once. The weights are written beside the old
ones, flushed to the disk and renamed: a full disk or a kill at any moment leaves the old
checkpoint whole. A folder holds one configuration, so that no moment mixes two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from retnet._files import (
    WEIGHT_DTYPES,
    dtype_name,
    hint,
    open_tensors,
    replace_file,
    write_tensors,
    wrong_dtype,
)
from retnet.config import RetNetConfig
from retnet.nn import RetNetForCausalLM
from retnet.nn.retention_constants import RetentionConstants, check_log_decay, raw_of

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

CONFIG = "config.json"
"""The file of the configuration in the folder of a checkpoint."""
WEIGHTS = "model.safetensors"
"""The file of the weights."""
_SHOWN = 3
_MATRICES = ("_proj.weight", "embed_tokens.weight", "lm_head.weight")
_GATHER = (
    "weights are sharded; on every rank gather them with torch.distributed.checkpoint.state_dict."
    "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, "
    "cpu_offload=True)), and on one pass them to retnet.checkpoint.write"
)


class Kind(NamedTuple):
    """What is known of a tensor without its data.

    Attributes:
        dtype: its name, in safetensors files if it has one in `WEIGHT_DTYPES`.
        shape: of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]


def save(folder: str | Path, model: RetNetForCausalLM) -> None:
    """Writes the configuration and the weights of a model; see `write`."""
    write(folder, model.config, model.state_dict())


def write(
    folder: str | Path,
    config: RetNetConfig,
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a checkpoint; the folder is made where there is none.

    Args:
        folder: where config.json and model.safetensors go. Weights of the same configuration
            are replaced.
        config: of the model.
        state_dict: as `RetNetForCausalLM.state_dict()` gives it, on any device, or gave it in an
            older version. A tied lm_head.weight may be there; it is left out. That of a sharded
            model must be gathered first, by torch.distributed.checkpoint.state_dict.
            get_model_state_dict with the options full_state_dict and cpu_offload.
        metadata: text to keep in the header of model.safetensors.

    Raises:
        ValueError: the keys or shapes are not those of the configuration, a dtype is none of
            float64, float32, float16 and bfloat16, or the tensors are shards.
        FileExistsError: the folder holds a checkpoint of another configuration, or other files
            of these names.
        OSError: the files could not be written; the old checkpoint is whole.
    """
    folder = Path(folder)
    tensors = dict(state_dict)
    if any(map(_is_shard, tensors, tensors.values())):
        raise ValueError(f"{folder}: {_GATHER}")
    if config.tie_embeddings and "lm_head.weight" in tensors:
        head, embedding = tensors.pop("lm_head.weight"), tensors.get("embed_tokens.weight")
        if embedding is None or not torch.equal(head, embedding):
            raise ValueError(
                f"{folder}: lm_head.weight must equal embed_tokens.weight with tie_embeddings"
            )
    for name, key in check_weights(folder / WEIGHTS, config, kinds_of(tensors)).items():
        if key != name:
            tensors[name] = _raw(folder / WEIGHTS, config, key, tensors.pop(key))
    fresh = check_folder(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    if fresh:
        text = config.to_json()
        replace_file(folder / CONFIG, lambda part: part.write_text(text, "utf-8"))
    write_tensors(folder / WEIGHTS, tensors, metadata or {})


def load(
    folder: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> RetNetForCausalLM:
    """Reads a checkpoint.

    Where older versions wrote `log_decay`, ln gamma itself, the `log_decay_raw` that gives it is
    found, within a relative error of 2^-24 (1 + abs(log_decay_raw)) in ln gamma.

    Args:
        folder: what `save` wrote.
        device: of the model; None for the CPU.
        dtype: of the weights; None for that of embed_tokens.weight in the file.

    Raises:
        FileNotFoundError: the folder or one of its two files does not exist.
        ValueError: a corrupt, truncated or foreign file, a newer format_version, keys or shapes
            that are not those of config.json, weights of another dtype than float64, float32,
            float16 and bfloat16, such as those of a quantised model, or an old `log_decay` above 0
            or NaN; the message names the file and what is wrong. Or `dtype` is none of the four.

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
    with open_tensors(folder / WEIGHTS) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        kinds = {n: Kind(part.get_dtype(), tuple(part.get_shape())) for n, part in slices.items()}
        stored = check_weights(folder / WEIGHTS, config, kinds)
        if dtype is None:
            dtype = WEIGHT_DTYPES[kinds["embed_tokens.weight"].dtype]
        model = RetNetForCausalLM(config, device="meta", dtype=dtype)
        model.to_empty(device=device or "cpu")
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                value = file.get_tensor(stored[name])
                if stored[name] != name:
                    value = _raw(folder / WEIGHTS, config, stored[name], value)
                tensor.copy_(value)
    return model


def read_config(folder: str | Path) -> RetNetConfig:
    """Reads config.json; raises as `load`."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: must hold {CONFIG} and {WEIGHTS}, found no {CONFIG}")
    try:
        return RetNetConfig.from_json(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_metadata(folder: str | Path) -> dict[str, str]:
    """Reads the metadata of `write`; raises as `load`."""
    with open_tensors(Path(folder) / WEIGHTS) as file:
        return dict(file.metadata() or {})


def check_folder(folder: Path, config: RetNetConfig) -> bool:
    """Returns whether config.json is still to be written.

    Raises:
        FileExistsError: the folder cannot take a checkpoint of `config`; see `write`.
    """
    if not (folder / CONFIG).exists():
        if (folder / WEIGHTS).exists():
            raise FileExistsError(f"{folder}: holds a {WEIGHTS} without {CONFIG}; not replaced")
        return True
    try:
        old = read_config(folder)
    except ValueError as error:
        raise FileExistsError(f"{error}; not replaced") from error
    if old == config:
        return False
    if not (folder / WEIGHTS).exists():  # a first save that was cut short
        return True
    before, now = asdict(old), asdict(config)
    name = next(name for name in now if before[name] != now[name])
    raise FileExistsError(
        f"{folder}: holds a checkpoint of another configuration ({name} = {before[name]!r}, "
        f"not {now[name]!r}); save elsewhere or remove it first"
    )


def kinds_of(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """Returns what `check_weights` looks at."""
    return {name: Kind(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}


def check_weights(path: Path, config: RetNetConfig, kinds: Mapping[str, Kind]) -> dict[str, str]:
    """Checks that names, shapes and dtypes are those of a model of `config`.

    Args:
        path: the file, for the message.
        config: of the model.
        kinds: of its tensors.

    Returns:
        The name under which `kinds` holds each tensor of the model: its own, or `log_decay` of
        older versions for `log_decay_raw`.

    Raises:
        ValueError: they are not.
    """
    model = RetNetForCausalLM(config, device="meta").state_dict()
    stored = {name: name for name in model}
    for name in model:
        old = name.removesuffix("_raw")
        if old != name and name not in kinds and old in kinds:
            stored[name] = old
    want = {stored[name]: tuple(tensor.shape) for name, tensor in model.items()}
    wrong = []
    if missing := want.keys() - kinds.keys():
        wrong.append(f"missing: {_list(missing)}")
    if unexpected := kinds.keys() - want.keys():
        named = [name + hint(name, missing or want) for name in sorted(unexpected)]
        wrong.append(f"unexpected: {_list(named)}")
    shared = want.keys() & kinds.keys()
    shaped = [
        f"{name} must have shape {list(want[name])}, got {list(kinds[name].shape)}"
        for name in shared
        if want[name] != kinds[name].shape
    ]
    typed = [
        wrong_dtype(name, kinds[name].dtype)
        for name in shared
        if kinds[name].dtype not in WEIGHT_DTYPES
    ]
    wrong += [_list(texts) for texts in (shaped, typed) if texts]
    if wrong:
        raise ValueError(f"{path}: must hold the weights of its configuration; {'; '.join(wrong)}")
    return stored


def _raw(path: Path, config: RetNetConfig, key: str, log_decay: Tensor) -> Tensor:
    """The parameter `log_decay_raw` of an old `log_decay`, which the file holds as `key`."""
    check_log_decay(f"{path}: {key}", log_decay)
    return raw_of(log_decay, RetentionConstants(config).reference(log_decay.device))


def _is_shard(name: str, tensor: Tensor) -> bool:
    """True for a DTensor, a ShardedTensor or a part of a flat parameter, which FSDP makes."""
    return (
        hasattr(tensor, "full_tensor")
        or hasattr(tensor, "local_shards")
        or name.rpartition(".")[2].startswith("_flat_param")
        or (tensor.dim() == 1 and name.endswith(_MATRICES))
    )


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
