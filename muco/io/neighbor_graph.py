"""The neighbour graph: for each sample of a data set, the samples nearest to it by a teacher model.

It is one safetensors file, specified in docs/components/samplers.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from muco.core.errors import DataError
from muco.io.atomic import atomic_path, write_errors
from muco.io.safetensors_header import sort_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FORMAT = "muco.neighbours"
_VERSION = "1"


@dataclass(frozen=True)
class NeighbourGraph:
    """Ranked neighbours of every sample."""

    neighbours: NDArray[np.int32]
    """[samples, ranks]: row i holds positions in the data set's index, nearest first, without i and without
    repeats; filled up with -1 if a sample has fewer neighbours."""
    data: str
    """Fingerprint of the shards: `muco.data.shards.index.ShardIndex.fingerprint`."""
    teacher: str
    """Fingerprint of the teacher: the hash of its weights, or its name and revision."""

    def write(self, path: Path) -> None:
        """Write the file atomically; raise MucoError if that fails, ValueError if the rows are not valid."""
        import numpy as np
        from safetensors import numpy as safetensors

        if problem := _problem(self.neighbours):
            raise ValueError(problem)
        metadata = {"format": _FORMAT, "version": _VERSION, "data": self.data, "teacher": self.teacher}
        with write_errors(f"{path}: the graph"), atomic_path(path) as partial:
            tensors = {"neighbours": np.ascontiguousarray(self.neighbours)}
            # `save_file` writes a file of its own beside `partial`, which would stay after a kill.
            partial.write_bytes(cast(Any, safetensors).save(tensors, metadata=metadata))
            sort_header(partial)

    @classmethod
    def read(cls, path: Path) -> NeighbourGraph:
        """Return the graph of a file; raise DataError if it is missing or broken, or of another version."""
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise DataError(f"{path}: no such file; `sampler.graphs` names files of neighbours")
        try:
            with cast(Any, safe_open)(path, framework="np") as file:
                metadata: dict[str, str] = file.metadata() or {}
                if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
                    raise DataError(f"{path}: no neighbour graph of version {_VERSION}")
                graph = cls(file.get_tensor("neighbours"), metadata["data"], metadata["teacher"])
        # TypeError and AttributeError: a dtype that numpy does not have.
        except (SafetensorError, OSError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: the graph is broken: {error}") from None
        if problem := _problem(graph.neighbours):
            raise DataError(f"{path}: {problem}")
        return graph


def _problem(neighbours: NDArray[np.int32]) -> str:
    """Return what is wrong with the rows; empty if they are valid."""
    if str(neighbours.dtype) != "int32" or neighbours.ndim != 2 or not neighbours.size:
        return f"neighbours are int32 [samples, ranks], not {neighbours.dtype} {list(neighbours.shape)}"
    if int(neighbours.min()) < -1 or int(neighbours.max()) >= len(neighbours):
        return f"a neighbour lies outside the {len(neighbours):,} samples"
    return ""
