# SPDX-License-Identifier: Apache-2.0
"""Writes, checks and reads the two files of a checkpoint: config.json and model.safetensors.

config.json is the result of `RetNetConfig.to_json`. model.safetensors holds the state dict of
`RetNetForCausalLM` under its own keys, with tied weights stored once. The new weights are written
beside the old ones, flushed to the disk and renamed. A full disk or a kill at any moment therefore
leaves the old checkpoint intact. A folder holds only one configuration, so that a checkpoint never
mixes two.

This module does not import `retnet.nn`. It takes `shapes`, the shape of each tensor in a model of
the configuration. `retnet.checkpoint` builds on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from retnet._decay import check_log_decay, raw_of, reference_of
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

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "Kind",
    "Shapes",
    "check_folder",
    "kinds_of",
    "open_weights",
    "read_config",
    "read_metadata",
    "stored_names",
    "write_checkpoint",
]

CONFIG = "config.json"
"""Name of the file that holds the configuration, in the folder of a checkpoint."""
WEIGHTS = "model.safetensors"
"""Name of the file that holds the weights."""
Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor in a state dict."""
_SHOWN = 3
_MATRICES = ("_proj.weight", "embed_tokens.weight", "lm_head.weight")
_GATHER = (
    "weights are sharded; on every rank gather them with torch.distributed.checkpoint.state_dict."
    "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, "
    "cpu_offload=True)), and on one pass them to retnet.checkpoint.write"
)


class Kind(NamedTuple):
    """Dtype and shape of a tensor.

    Attributes:
        dtype: name of the dtype; the name in safetensors files if `WEIGHT_DTYPES` has one.
        shape: shape of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]


def write_checkpoint(
    folder: Path,
    config: RetNetConfig,
    shapes: Shapes,
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes both files; see `retnet.checkpoint.write`."""
    tensors = dict(state_dict)
    if any(map(_is_shard, tensors, tensors.values())):
        raise ValueError(f"{folder}: {_GATHER}")
    if config.tie_embeddings and "lm_head.weight" in tensors:
        head, embedding = tensors.pop("lm_head.weight"), tensors.get("embed_tokens.weight")
        if embedding is None or not torch.equal(head, embedding):
            raise ValueError(
                f"{folder}: lm_head.weight must equal embed_tokens.weight with tie_embeddings"
            )
    for name, key in stored_names(folder / WEIGHTS, shapes, kinds_of(tensors)).items():
        if key != name:
            tensors[name] = _raw(folder / WEIGHTS, config, key, tensors.pop(key))
    fresh = check_folder(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    if fresh:
        text = config.to_json()
        replace_file(folder / CONFIG, lambda part: part.write_text(text, "utf-8"))
    write_tensors(folder / WEIGHTS, tensors, metadata or {})


@contextmanager
def open_weights(
    folder: Path, config: RetNetConfig, shapes: Shapes
) -> Iterator[tuple[torch.dtype, Callable[[str], Tensor]]]:
    """Opens model.safetensors. Its tensors must have these shapes.

    Yields:
        The dtype of embed_tokens.weight, and a function that reads a tensor by its state-dict name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt, truncated or of another kind. See `retnet.checkpoint.load`.
    """
    path = folder / WEIGHTS
    with open_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        kinds = {n: Kind(part.get_dtype(), tuple(part.get_shape())) for n, part in slices.items()}
        stored = stored_names(path, shapes, kinds)

        def read(name: str) -> Tensor:
            key = stored[name]
            tensor: Tensor = file.get_tensor(key)
            return tensor if key == name else _raw(path, config, key, tensor)

        yield WEIGHT_DTYPES[kinds["embed_tokens.weight"].dtype], read


def read_config(folder: str | Path) -> RetNetConfig:
    """Reads config.json. Raises what `retnet.checkpoint.load` raises."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: must hold {CONFIG} and {WEIGHTS}, found no {CONFIG}")
    try:
        return RetNetConfig.from_json(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_metadata(folder: str | Path) -> dict[str, str]:
    """Reads the metadata that `write` stored. Raises what `retnet.checkpoint.load` raises."""
    with open_tensors(Path(folder) / WEIGHTS) as file:
        return dict(file.metadata() or {})


def check_folder(folder: Path, config: RetNetConfig) -> bool:
    """Returns whether config.json must still be written.

    Raises:
        FileExistsError: the folder cannot take a checkpoint of `config`; see
            `retnet.checkpoint.write`.
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
    if not (folder / WEIGHTS).exists():  # the first save was interrupted
        return True
    before, now = asdict(old), asdict(config)
    name = next(name for name in now if before[name] != now[name])
    raise FileExistsError(
        f"{folder}: holds a checkpoint of another configuration ({name} = {before[name]!r}, "
        f"not {now[name]!r}); save elsewhere or remove it first"
    )


def kinds_of(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """Returns the dtypes and shapes that `stored_names` checks."""
    return {name: Kind(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}


def stored_names(path: Path, shapes: Shapes, kinds: Mapping[str, Kind]) -> dict[str, str]:
    """Checks names, shapes and dtypes, and finds each tensor of the model.

    Args:
        path: the file, which the message names.
        shapes: shapes of the tensors in the model.
        kinds: dtypes and shapes of the tensors in the file.

    Returns:
        The name under which `kinds` holds each tensor of the model. It is its own name, except that
        older versions stored `log_decay` for `log_decay_raw`.

    Raises:
        ValueError: names, shapes or dtypes are not those of the model.
    """
    stored = {name: name for name in shapes}
    for name in shapes:
        old = name.removesuffix("_raw")
        if old != name and name not in kinds and old in kinds:
            stored[name] = old
    want = {stored[name]: shape for name, shape in shapes.items()}
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
    """Returns `log_decay_raw` for an old `log_decay`, which the file holds as `key`."""
    check_log_decay(f"{path}: {key}", log_decay)
    return raw_of(log_decay, reference_of(config).to(log_decay.device))


def _is_shard(name: str, tensor: Tensor) -> bool:
    """Returns True for a DTensor, a ShardedTensor or a part of a flat parameter of FSDP."""
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
