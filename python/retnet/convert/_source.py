# SPDX-License-Identifier: Apache-2.0
"""The files of another project: named tensors, settings, and the fields that they leave open."""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retnet._files import WEIGHT_DTYPES, dtype_name, open_tensors, wrong_dtype
from retnet.config import RetNetConfig

__all__ = ["Source", "Translation", "read", "shorten"]

_SHOWN = 3
_WHOLE = ("model.safetensors", "pytorch_model.bin")


class Translation(NamedTuple):
    """A checkpoint in terms of this package.

    Attributes:
        config: the configuration of the model.
        tensors: the tensors under our names, without a tied lm_head.weight.
        origin: the project of the source.
    """

    config: RetNetConfig
    tensors: dict[str, Tensor]
    origin: str


@dataclass
class Source:
    """A checkpoint of another project.

    Attributes:
        path: the file or folder.
        tensors: the tensors under the names of the project.
        settings: its configuration. Empty if it has none.
        options: what the caller specified, by field of RetNetConfig. None means not specified.
    """

    path: Path
    tensors: dict[str, Tensor]
    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    _open: list[str] = field(default_factory=list)

    def error(self, text: str) -> ValueError:
        """Returns an error that names the source."""
        return ValueError(f"{self.path}: {text}")

    def size(self, name: str, axis: int) -> int:
        """Returns the length of an axis of a tensor. Raises if the tensor or axis is missing."""
        if name not in self.tensors:
            raise self.error(f"must hold the tensor {name}, which is missing")
        shape = self.tensors[name].shape
        if len(shape) <= axis:
            raise self.error(f"{name} must have {axis + 1} dimensions, got shape {list(shape)}")
        return shape[axis]

    def check_dtypes(self) -> None:
        """Raises if a tensor has a dtype that weights may not have."""
        for name, tensor in self.tensors.items():
            if tensor.dtype not in WEIGHT_DTYPES.values():
                raise self.error(wrong_dtype(name, dtype_name(tensor.dtype)))

    def agree(self, facts: Mapping[str, object]) -> None:
        """Raises if a setting differs from what the tensors show. A setting of None is ignored."""
        for name, shown in facts.items():
            said = self.settings.get(name)
            if said is not None and said != shown:
                raise self.error(
                    f"its configuration has {name} = {said!r}, but its tensors show {shown!r}"
                )

    def raise_unsupported(self, variants: Mapping[str, bool]) -> None:
        """Raises if a variant is present. The message names the first one."""
        for name, there in variants.items():
            if there:
                raise self.error(f"{name} is not supported")

    def settle(self, name: str, known: Any, values: str = "") -> Any:
        """Returns a field of RetNetConfig from the settings (`known`) or from the option.

        If neither determines it, records its name and possible `values` for `settled`.
        """
        option = self.options.get(name)
        if option is None and known is None:
            self._open.append(f"{name} ({values})")
        if option is not None and known is not None and option != known:
            raise self.error(f"{name} must be {known!r}, as in the checkpoint, got {option!r}")
        return known if option is None else option

    def settled(self) -> None:
        """Raises if any field is still open, and lists them all."""
        if self._open:
            raise self.error(
                "neither its tensors nor its configuration determine these fields; pass them as "
                "options: " + ", ".join(self._open)
            )

    def is_tied(self, head: str, embedding: str, setting: str) -> bool:
        """Returns whether the output matrix is the embedding.

        The setting decides. If there is none, the matrix is the embedding if the two are equal.

        Raises:
            ValueError: the setting contradicts the tensors, or a tensor is missing.
        """
        said = self.settings.get(setting)
        self.size(embedding, 1)
        if not (said and head not in self.tensors):
            self.size(head, 1)
            equal = torch.equal(self.tensors[head], self.tensors[embedding])
            if said and not equal:
                raise self.error(f"its configuration has {setting}, but {head} is not {embedding}")
            said = equal if said is None else said
        return bool(said)

    def renamed(self, top: Mapping[str, str], layer: Mapping[str, str]) -> dict[str, Tensor]:
        """Returns the tensors under our names.

        Args:
            top: maps their modules outside the layers to ours.
            layer: maps their modules inside `layers.N` to ours.

        Raises:
            ValueError: a name is in neither table, or two names map to one of ours.
        """
        result: dict[str, Tensor] = {}
        unknown = []
        for name, tensor in self.tensors.items():
            module, _, leaf = name.rpartition(".")
            place = re.fullmatch(r"(layers\.\d+)\.(.+)", module)
            ours = layer.get(place[2]) if place else top.get(module)
            new = f"{place[1]}.{ours}.{leaf}" if place else f"{ours}.{leaf}"
            if ours is None or leaf not in ("weight", "bias") or new in result:
                unknown.append(name)
                continue
            result[new] = tensor
        if unknown:
            raise self.error(f"must hold the tensors of a RetNet only, got {shorten(unknown)}")
        return result

    def config(self, **fields: Any) -> RetNetConfig:
        """Returns a configuration. An error names the source."""
        self.settled()
        try:
            return RetNetConfig(**fields)
        except ValueError as error:
            raise self.error(str(error)) from error


def read(path: Path, options: Mapping[str, Any]) -> Source:
    """Reads a file, or a folder with config.json as save_pretrained writes it.

    Raises:
        FileNotFoundError: the path or a file in the folder is missing.
        ValueError: a file is incomplete, of another kind, or a pickle of more than plain values.
    """
    if path.is_dir():
        said = _read_json(path / "config.json")
        return Source(path, _read_folder(path), said, options)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    tensors, settings = _read_file(path)
    return Source(path, tensors, settings, options)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: must be JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must be a JSON object, got {type(data).__name__}")
    return data


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of one file, or of the files that an index names."""
    for name in _WHOLE:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _read_file(folder / name)[0]
        if index.is_file():
            return _read_shards(folder, index)
    raise FileNotFoundError(f"{folder}: must hold {' or '.join(_WHOLE)}, or several with an index")


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        # Plain names only: an index must not lead to a file outside the folder.
        isinstance(file, str) and Path(file).name == file
        for file in places.values()
    ):
        raise ValueError(
            f"{index}: must hold weight_map, which maps each tensor to a file in the same folder"
        )
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        tensors |= _read_file(folder / file)[0]
    if missing := places.keys() - tensors.keys():
        raise ValueError(f"{index}: its files lack {shorten(sorted(missing))}")
    return tensors


def _read_file(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Returns the tensors of a safetensors or torch.save file, and the settings in it."""
    if path.suffix == ".safetensors":
        with open_tensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, {}  # noqa: SIM118
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content = _unpickle(path)
    tensors, settings = content, None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        tensors, settings = content["model"], content.get("args")
        if settings is None and isinstance(content.get("cfg"), dict):
            settings = content["cfg"].get("model")
    if isinstance(settings, argparse.Namespace):
        settings = vars(settings)
    if not isinstance(tensors, dict) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise ValueError(f"{path}: must hold a state dict, or one under `model`")
    if not (settings is None or isinstance(settings, dict)):
        kind = type(settings).__name__
        raise ValueError(f"{path}: `args` or `cfg` must be a Namespace or a dict, got {kind}")
    return dict(tensors), settings or {}


def _unpickle(path: Path) -> Any:
    # Tensors stay on the disk until they are written. Those of an optimizer are never read.
    mapped = zipfile.is_zipfile(path)
    path.open("rb").close()  # may raise OSError, which names the file
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path}: must hold tensors, plain values and argparse.Namespace only, got "
                f"{name[1]}, which is not loaded"
            ) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: must be a whole file of torch.save: {reason}") from error


def shorten(names: Iterable[str]) -> str:
    """Returns the first few names and the number of the others."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
