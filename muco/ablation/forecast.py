"""What a grid will take: FLOPs that are counted, and seconds by the cells that are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muco.ablation.cells import Cell
from muco.ablation.state import summary_of


@dataclass(frozen=True)
class Forecast:
    """The cells that are not done."""

    num_cells: int
    num_steps: int
    seconds: float | None
    """Of one cell after the other; None while no cell is done."""


def forecast(cells: Sequence[Cell]) -> Forecast:
    """Return what the cells that are not done will take, by the samples a second of those that are."""
    summaries = {cell.fingerprint: summary_of(cell) for cell in cells}
    done = [summary for summary in summaries.values() if summary is not None]
    left = [cell for cell in cells if summaries[cell.fingerprint] is None]
    samples = sum(cell.recipe.train.num_steps * cell.recipe.train.global_batch_size for cell in left)
    seen = sum(summary.samples_seen for summary in done)
    seconds = sum(summary.wall_seconds for summary in done) / seen * samples if seen else None
    return Forecast(len(left), sum(cell.recipe.train.num_steps for cell in left), seconds)
