"""`muco init`: look at a data set of one's own, split it, and write a recipe for it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.markup import escape

from muco.commands.check import check
from muco.commands.init_recipe import ImageSizes, Machine, OwnRecipe, measure_images
from muco.config.load import load_recipe
from muco.console import plain_table
from muco.core.errors import DataError, MucoError
from muco.core.registry import default_registry
from muco.data.own.guess import VIDEO_HINT, Column, describe_columns, guess_parts
from muco.data.own.layout import OwnData, exists_in, find_data
from muco.data.own.split import Split, split_rows
from muco.io.atomic import write_text
from muco.io.columns import PairColumns

_IMAGES_MEASURED = 64
_SKIPPED_SHOWN = 5


def init(
    path: Path,
    *,
    to: Path | None,
    images: Path | None,
    columns: Mapping[str, str],
    held_out: float,
    seed: int,
    machine: Machine | None,
    console: Console,
) -> Path:
    """Write a training table, a held-out table and a recipe, and return the recipe's path.

    The arguments are the options of `muco init`; `columns` are those that the user named, by part of a pair,
    and an empty name leaves the part out. Raise MucoError for what the user can fix, a file that is in the
    way among it.
    """
    data = find_data(path, images)
    known = describe_columns(data.sample(), exists_in(data.files), lambda name: (data.root / name).is_dir())
    parts = guess_parts(known, columns)
    name = _name_of(path) if to is None else _name_of(to)
    recipe = to or Path(f"{name}.yaml")
    _check_free(recipe)
    stem = recipe.with_name(name)
    pairs = PairColumns.model_validate(parts)
    split = split_rows(data, pairs, stem, share=held_out, seed=seed, check_free=_check_free)
    source = _source(split, parts)
    sizes = _sizes(source)
    chosen = machine or _this_machine()
    made = OwnRecipe(
        name=name,
        title=str(path),
        made_from=str(path),
        recipe=str(recipe),
        train=str(split.train),
        held_out=str(split.held_out) if split.held_out else None,
        images=_images_of(split, parts),
        columns=parts,
        sizes=sizes,
        symmetric=_is_symmetric(parts, known),
        num_samples=len(source),
        machine=chosen,
    )
    write_text(recipe, made.text())
    notes = check(load_recipe(str(recipe)), str(recipe))
    _print(console, data, known, parts, split, made)
    for note in notes:
        console.print(f"note: {note}")
    console.print(f"\nGo on with:\n  muco-run {recipe} --check\n  muco-run {recipe}", markup=False)
    return recipe


def _name_of(path: Path) -> str:
    name = re.sub(r"\W+", "_", Path(os.path.abspath(path)).name.partition(".")[0]).strip("_")
    return name or "own_data"


def _check_free(path: Path) -> None:
    if path.exists():
        raise MucoError(f"{path} is there already: remove it, or name another recipe with --to")


def _images_of(split: Split, parts: Mapping[str, str]) -> str | None:
    """Return the folder of the images as the recipe names it: relative below the working folder."""
    if split.images is None or not any(part.endswith("_image") for part in parts):
        return None
    relative = os.path.relpath(split.images)
    return os.path.abspath(split.images) if relative.startswith("..") else relative


def _source(split: Split, parts: Mapping[str, str]) -> Any:
    """Return the source of the recipe; raise DataError if it has a single sample."""
    cls: Any = default_registry().component("source", "pairs")
    values = {"path": str(split.train), "columns": parts, "images": _images_of(split, parts)}
    source = cls(cls.Config.model_validate(values))
    if len(source) < 2:
        raise DataError(f"{split.train}: one sample has no negatives; a table needs two or more")
    return source


def _sizes(source: Any) -> ImageSizes | None:
    """Return what the images of some samples are like."""
    rows = sorted(Random(0).sample(range(len(source)), min(_IMAGES_MEASURED, len(source))))
    chosen = set(rows)
    samples = (source.sample(record) for row, record in enumerate(source.records()) if row in chosen)
    return measure_images(
        image
        for sample in samples
        for image in (*sample.images, *(each for pair in sample.pairs for each in pair.target.images))
    )


def _is_symmetric(parts: Mapping[str, str], known: list[Column]) -> bool:
    """Return whether targets find their queries too; they do not if many have one target, such as a class."""
    targets = {parts.get("target_text"), parts.get("target_image")} - {None}
    return min(column.distinct_share for column in known if column.name in targets) > 0.9


def _this_machine() -> Machine:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def _print(
    console: Console,
    data: OwnData,
    known: list[Column],
    parts: Mapping[str, str],
    split: Split,
    made: OwnRecipe,
) -> None:
    table = plain_table()
    why = {column.name: f"{column.kind}: {column.why}" for column in known}
    for part, column in parts.items():
        table.add_row(part, escape(f"column {column}"), escape(why[column]))
    unused = [column.name for column in known if column.name not in parts.values()]
    if unused:
        table.add_row("not used", escape(", ".join(unused)), "--query-text NAME, ... uses one")
    if made.images:
        table.add_row("images", escape(made.images), f"about {made.sizes}" if made.sizes else "")
    table.add_row("training", escape(made.train), f"{split.num_train:,} rows, {made.num_samples:,} samples")
    table.add_row("held out", escape(made.held_out or "nothing"), _held_out_text(split))
    if split.skipped:
        table.add_row("left out", f"{len(split.skipped):,} rows", "no pair, or a missing image")
    kind = "Qwen2-VL-2B with adapters" if made.machine == "gpu" else "a small model from random weights"
    table.add_row("model", made.machine.upper(), kind)
    table.add_row("recipe", escape(made.recipe), "")
    console.print(table)
    for where, reason in list(split.skipped.items())[:_SKIPPED_SHOWN]:
        console.print(f"left out {where}: {reason}", markup=False)
    for column in known:
        if column.kind == "URL":
            note = f"note: {column.name} holds URLs: `muco data download` downloads the images"
            console.print(note, markup=False)
        if column.kind == "video":
            console.print(f"note: {column.name} holds videos. {VIDEO_HINT}", markup=False)


def _held_out_text(split: Split) -> str:
    if split.held_out is None:
        return "the recipe scores nothing"
    return f"{split.num_held_out:,} rows; no image is in both"
