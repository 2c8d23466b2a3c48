"""`muco export`: write a trained model as a folder of its own, for muco and for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from muco.console import Terminal, plain_table
from muco.core.errors import MucoError
from muco.export.write import write_exported, write_merged
from muco.model.source import find_model

if TYPE_CHECKING:
    from muco.export.check import Agreement

Layout = Literal["transformers", "muco"]
"""transformers: for transformers, sentence-transformers and vLLM; muco reads it too. muco: as a run saves its
model, for muco alone, or for open_clip."""


def export(
    model: str,
    to: Path,
    *,
    layout: Layout = "transformers",
    check: bool = True,
    license_id: str | None = None,
    console: Console | None = None,
) -> Path:
    """Write the model of a run or of a model folder, its adapters merged into its weights; return `to`.

    The arguments are the options of `muco export`. Raise MucoError if there is no model, other tools cannot
    compute its vectors, the check failed, `to` exists, or the disk is full or not writable.
    """
    source = find_model(model)
    if source.folder is None:
        raise MucoError(
            f"{model}: a backbone without training has nothing to export; name a run or a model folder"
        )
    if layout == "muco":
        write_merged(source, to)
        return to
    agreements = write_exported(source, to, check=check, license_id=license_id)
    if agreements:
        (console or Terminal()).print(_table(agreements))
    return to


def _table(agreements: list[Agreement]) -> Table:
    table = plain_table("read by", "inputs", "number", "lowest cosine to muco")
    for each in agreements:
        table.add_row(each.reader, each.kind, str(each.number), f"{min(each.cosine, 1):.6f}")
    return table
