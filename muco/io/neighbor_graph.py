"""The neighbour graph: for each sample of a data set the others that a teacher finds nearest to it.

One safetensors file; docs/components/samplers.md is its specification.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from muco.core.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FORMAT = "muco.neighbours"
_VERSION = "1"


@dataclass(frozen=True)
class NeighbourGraph:
    """Ranked neighbours of every sample."""

    neighbours: NDArray[np.int32]
    """[samples, ranks]: row i holds positions in the data set's index, the nearest first, without i and
    none twice; -1 after the last where a sample has fewer."""
    data: str
    """Fingerprint of the shards: `muco.data.shards.index.ShardIndex.fingerprint`."""
    teacher: str
    """Fingerprint of the model that ranked them: its weights' hash, or a name and revision."""

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            ValueError: the neighbours are not what they must be.
            DataError: it cannot be written.
        """
        import numpy as np
        from safetensors import numpy as safetensors

        told = _wrong(self.neighbours)
        if told:
            raise ValueError(told)
        beside = path.with_name(f".{path.name}.{uuid4().hex}")
        about = {"format": _FORMAT, "version": _VERSION, "data": self.data, "teacher": self.teacher}
        try:
            cast(Any, safetensors).save_file(
                {"neighbours": np.ascontiguousarray(self.neighbours)}, beside, metadata=about
            )
            os.replace(beside, path)
        except OSError as error:
            raise DataError(f"{path}: the graph cannot be written: {error}") from error
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> NeighbourGraph:
        """Return the graph of a file.

        Raises:
            DataError: no such file, or not a graph of this version.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise DataError(f"{path}: no such file; `sampler.graphs` names files of neighbours")
        try:
            with cast(Any, safe_open)(path, framework="np") as file:
                about: dict[str, str] = file.metadata() or {}
                if (about.get("format"), about.get("version")) != (_FORMAT, _VERSION):
                    raise DataError(f"{path}: no neighbour graph of version {_VERSION}")
                found = cls(file.get_tensor("neighbours"), about["data"], about["teacher"])
        except (SafetensorError, OSError, KeyError) as error:
            raise DataError(f"{path}: the graph is broken: {error}") from None
        told = _wrong(found.neighbours)
        if told:
            raise DataError(f"{path}: {told}")
        return found


def _wrong(neighbours: NDArray[np.int32]) -> str:
    """Return what is wrong with the rows; empty where nothing is."""
    if str(neighbours.dtype) != "int32" or neighbours.ndim != 2 or not neighbours.size:
        return f"neighbours are int32 [samples, ranks], not {neighbours.dtype} {list(neighbours.shape)}"
    if int(neighbours.min()) < -1 or int(neighbours.max()) >= len(neighbours):
        return f"a neighbour lies outside the {len(neighbours):,} samples"
    return ""
