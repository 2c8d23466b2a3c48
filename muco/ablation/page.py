"""The page of a grid: one HTML file that loads nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from muco import __version__
from muco.ablation.cells import Cell, Plan
from muco.ablation.launch.task import Task
from muco.ablation.plots import curves_of, effects_of, heat_maps_of
from muco.ablation.results import RowResult
from muco.ablation.state import status_of
from muco.ablation.table import cells_of, header, notes
from muco.io.templates import html_templates
from muco.report import formatting as words
from muco.report import page as report
from muco.run_folder import differences

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class LinkedCell:
    """A run and where its files are, as seen from the page."""

    title: str
    fingerprint: str
    status: str
    report: str | None
    recipe: str | None
    log: str | None


@dataclass(frozen=True)
class PageRow:
    """A row with its links."""

    label: str
    is_baseline: bool
    texts: tuple[str, ...]
    sort_keys: tuple[str, ...]
    cells: tuple[LinkedCell, ...]
    changes: tuple[str, ...]
    """How its recipe differs from the baseline's."""


def render(plan: Plan, results: Sequence[RowResult], folder: Path) -> str:
    """Return the page that is written to `folder`, to which links are relative; every string is escaped."""
    css = (report.TEMPLATES / "page.css").read_text("utf-8") + (_TEMPLATES / "grid.css").read_text("utf-8")
    js = (_TEMPLATES / "grid.js").read_text("utf-8")
    templates = html_templates("ablation/templates")
    return templates.get_template("grid.html").render(
        grid=plan.grid,
        metric=plan.metrics[0],
        titles=header(plan, results),
        num_axes=len(plan.axes),
        rows=[_row(plan, results, each, folder) for each in results],
        notes=notes(plan, results),
        effects=effects_of(plan, results),
        heat_maps=heat_maps_of(plan, results),
        curves=curves_of(results),
        words=words,
        css=Markup(css),
        js=Markup(js),
        policy=report.content_policy(css, js),
        version=__version__,
    )


def _row(plan: Plan, results: Sequence[RowResult], each: RowResult, folder: Path) -> PageRow:
    texts = cells_of(plan, results, each)
    return PageRow(
        label=each.row.point.label,
        is_baseline=each.is_baseline,
        texts=tuple(texts),
        sort_keys=tuple(text.split(" ")[0].replace(",", "").replace("<", "") for text in texts),
        cells=tuple(
            _linked(f"{stage} seed {seed}".strip(), cell, folder)
            for seed, end in each.row.cells.items()
            for stage, cell in zip(plan.grid.stages or [""], end.chain, strict=True)
        ),
        changes=tuple(_changes(plan.baseline.cells, each.row.cells)),
    )


def _changes(old: dict[int, Cell], new: dict[int, Cell]) -> list[str]:
    """Return the differences of two rows' recipes, of all stages."""
    seed = next(iter(new))
    lines: list[str] = []
    for before, after in zip(old[seed].chain, new[seed].chain, strict=True):
        lines += differences(before.recipe.dump(), after.recipe.dump())
    own = [cell.fingerprint for cells in (old, new) for cell in cells[seed].chain]
    return [line for line in lines if not any(name in line for name in own)]


def _linked(title: str, cell: Cell, folder: Path) -> LinkedCell:
    task = Task(cell.folder)

    def link(path: Path) -> str | None:
        return Path(os.path.relpath(path, folder)).as_posix() if path.is_file() else None

    return LinkedCell(
        title, cell.fingerprint, status_of(cell), link(cell.folder / "report.html"), link(task.recipe),
        link(task.log),
    )  # fmt: skip
