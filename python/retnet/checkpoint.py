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

import torch
from torch import Tensor

from retnet._files import hint, open_tensors, replace_file, write_tensors
from retnet.config import RetNetConfig
from retnet.nn import RetNetForCausalLM

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "check_folder",
    "check_shapes",
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
        state_dict: as `RetNetForCausalLM.state_dict()` gives it, on any device. A tied
            lm_head.weight may be there; it is left out.
        metadata: text to keep in the header of model.safetensors.

    Raises:
        ValueError: the keys or shapes are not those of the configuration.
        FileExistsError: the folder holds a checkpoint of another configuration, or other files
            of these names.
        OSError: the files could not be written; the old checkpoint is whole.
    """
    folder = Path(folder)
    tensors = dict(state_dict)
    if config.tie_embeddings and "lm_head.weight" in tensors:
        head, embedding = tensors.pop("lm_head.weight"), tensors.get("embed_tokens.weight")
        if embedding is None or not torch.equal(head, embedding):
            raise ValueError(
                f"{folder}: lm_head.weight must equal embed_tokens.weight with tie_embeddings"
            )
    check_shapes(folder / WEIGHTS, config, {name: tuple(t.shape) for name, t in tensors.items()})
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

    Args:
        folder: what `save` wrote.
        device: of the model; None for the CPU.
        dtype: of the weights; None for that of embed_tokens.weight in the file.

    Raises:
        FileNotFoundError: the folder or one of its two files does not exist.
        ValueError: a corrupt, truncated or foreign file, a newer format_version, keys or shapes
            that are not those of config.json; the message names the file and what is wrong.

    Example:
        >>> import torch
        >>> import retnet
        >>> from retnet.nn import RetNetForCausalLM
        >>> RetNetForCausalLM(retnet.RetNetConfig.preset("tiny")).save("model")
        >>> model = retnet.load("model", dtype=torch.bfloat16)
        >>> model.lm_head.weight.dtype
        torch.bfloat16
    """
    folder = Path(folder)
    config = read_config(folder)
    with open_tensors(folder / WEIGHTS) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        check_shapes(folder / WEIGHTS, config, shapes)
        if dtype is None:
            dtype = file.get_tensor("embed_tokens.weight").dtype
        if not dtype.is_floating_point:
            raise ValueError(f"{folder / WEIGHTS}: weights must be floating point, got {dtype}")
        model = RetNetForCausalLM(config, device="meta", dtype=dtype)
        model.to_empty(device=device or "cpu")
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(file.get_tensor(name))
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


def check_shapes(path: Path, config: RetNetConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError where names or shapes are not those of a model of `config`."""
    model = RetNetForCausalLM(config, device="meta").state_dict()
    want = {name: tuple(tensor.shape) for name, tensor in model.items()}
    wrong = []
    if missing := want.keys() - shapes.keys():
        wrong.append(f"missing: {_list(missing)}")
    if unexpected := shapes.keys() - want.keys():
        named = [name + hint(name, missing or want) for name in sorted(unexpected)]
        wrong.append(f"unexpected: {_list(named)}")
    shaped = [
        f"{name} must have shape {list(want[name])}, got {list(shapes[name])}"
        for name in want.keys() & shapes.keys()
        if want[name] != shapes[name]
    ]
    if shaped:
        wrong.append(_list(shaped))
    if wrong:
        raise ValueError(f"{path}: must hold the weights of its configuration; {'; '.join(wrong)}")


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
