# SPDX-License-Identifier: Apache-2.0
"""The decoding state of a RetNet. Its size does not depend on the length of the text."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from retnet._files import open_tensors, write_tensors

__all__ = ["RetNetState"]

_FORMAT_VERSION = 1


class RetNetState(NamedTuple):
    """What a RetNet remembers of the tokens it has read.

    It holds S_n of every layer (Sun et al. 2023, section 2.1, Eq. 6). It is a named tuple, so that
    torch.compile, FSDP and torch.export see the tensors inside.

    Attributes:
        retention: [L, B, H, K, V] float32 (float64 in a float64 model), S_n of each layer.
        positions: [B] int64, the number of tokens read so far. This is the position of the next
            token.

    Example:
        >>> import torch
        >>> from retnet import RetNetConfig, RetNetState
        >>> from retnet.nn import RetNetForCausalLM
        >>> model = RetNetForCausalLM(RetNetConfig.preset("tiny"))
        >>> with torch.no_grad():
        ...     state = model(torch.randint(256, (2, 100))).state
        ...     state = model(torch.randint(256, (2, 1)), state=state).state  # one token more
        >>> state.positions
        tensor([101, 101])
        >>> state.select(torch.tensor([1, 1, 0])).retention.shape  # [L, B, H, K, V]
        torch.Size([3, 3, 4, 32, 64])
        >>> state.save("state.safetensors")
        >>> RetNetState.load("state.safetensors").positions
        tensor([101, 101])
    """

    retention: Tensor
    positions: Tensor

    def fork(self) -> RetNetState:
        """Returns an independent copy. Decoding with one does not change the other."""
        return RetNetState(self.retention.clone(), self.positions.clone())

    def select(self, rows: Tensor) -> RetNetState:
        """Returns a copy with the given batch entries, in that order.

        An entry may repeat, as in beam search.

        Args:
            rows: [R] int64 or int32, indices of batch entries.
        """
        return RetNetState(
            self.retention.index_select(1, rows), self.positions.index_select(0, rows)
        )

    def detach(self) -> RetNetState:
        """Returns the same values detached from the graph (truncated back-propagation)."""
        return RetNetState(self.retention.detach(), self.positions)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with the tensors `retention` and `positions`.

        An existing file is replaced atomically. If an error occurs, it is not replaced.

        Raises:
            OSError: the file could not be written.
            ValueError: shapes or dtypes are not those of a state.
        """
        _check(Path(path), self.retention, self.positions)
        version = {"format_version": str(_FORMAT_VERSION)}
        write_tensors(Path(path), self._asdict(), version)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str | None = None) -> RetNetState:
        """Reads a file that `save` wrote.

        Args:
            path: the file.
            device: the device of the state; None for the CPU.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is corrupt, truncated, of another kind or of a newer
                format_version.
        """
        path = Path(path)
        with open_tensors(path) as file:
            version = (file.metadata() or {}).get("format_version", "1")
            if not version.isdecimal() or int(version) > _FORMAT_VERSION:
                raise ValueError(
                    f"{path}: format_version must be <= {_FORMAT_VERSION}, got {version}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if tensors.keys() != set(cls._fields):
                raise ValueError(
                    f"{path}: must hold the tensors retention and positions, got {sorted(tensors)}"
                )
            retention, positions = tensors["retention"], tensors["positions"]
            _check(path, retention, positions)
            # Copies, because the file may be removed and decoding writes into the state.
            return cls(*(t.clone().to(device or "cpu") for t in (retention, positions)))


# torch.export can then save and load programs with a state among their inputs or outputs.
_register_namedtuple(RetNetState, serialized_type_name="retnet.RetNetState")
torch.serialization.add_safe_globals([RetNetState])


def _check(path: Path, retention: Tensor, positions: Tensor) -> None:
    ok = retention.dim() == 5 and retention.dtype in (torch.float32, torch.float64)
    if not ok or positions.shape != retention.shape[1:2] or positions.dtype != torch.int64:
        raise ValueError(
            f"{path}: must hold retention [L, B, H, K, V] float32 or float64 and positions "
            f"[B] int64, got {_kind(retention)} and {_kind(positions)}"
        )


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
