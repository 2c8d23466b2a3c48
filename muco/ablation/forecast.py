"""What a grid will take: counted FLOPs, and seconds by the cells that are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muco.ablation.cells import Cell
from muco.ablation.state import summary_of
from muco.core.errors import MucoError
from muco.costs.assumptions import read_assumptions
from muco.costs.estimate import estimate


@dataclass(frozen=True)
class Forecast:
    """The cells that are not done."""

    num_cells: int
    num_steps: int
    flops: int
    """Model FLOPs of those whose backbone's sizes are known, by the assumptions of `muco-run --flops`."""
    num_unknown: int
    """Cells whose FLOPs are not known, because the sizes of the backbone are not."""
    seconds: float | None
    """Of one cell after the other; None while no cell is done."""


def forecast(cells: Sequence[Cell]) -> Forecast:
    """Return what the cells that are not done will take; their time by the samples a second of those done."""
    summaries = {cell.fingerprint: summary_of(cell) for cell in cells}
    done = [summary for summary in summaries.values() if summary is not None]
    left = [cell for cell in cells if summaries[cell.fingerprint] is None]
    samples = sum(cell.recipe.train.num_steps * cell.recipe.train.global_batch_size for cell in left)
    seen = sum(summary.samples_seen for summary in done)
    counted = [counted_flops(cell) for cell in left]
    return Forecast(
        num_cells=len(left),
        num_steps=sum(cell.recipe.train.num_steps for cell in left),
        flops=sum(each or 0 for each in counted),
        num_unknown=counted.count(None),
        seconds=sum(summary.wall_seconds for summary in done) / seen * samples if seen else None,
    )


def counted_flops(cell: Cell) -> int | None:
    """Return the model FLOPs of a cell's training as assumed; None where the sizes are not known.

    A later stage has the sizes of the first, whose model may not exist yet.
    """
    train, first = cell.recipe.train, cell.chain[0]
    assumed = read_assumptions((), train.global_batch_size)
    try:
        return estimate(cell.recipe, assumed, sizes_of=first.recipe.backbone).step.model * train.num_steps
    except MucoError:
        return None
