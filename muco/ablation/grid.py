"""The schema of a grid: a base recipe, and what its cells change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from muco.config.load import find_recipe, read_recipe, validate_settings
from muco.config.recipe import FileName
from muco.config.yaml_lines import Lines
from muco.core.component import ComponentConfig
from muco.core.errors import MucoError

Changes = dict[str, Any]
"""Values by dotted key of a recipe; a whole component is a mapping with its `name`."""
Values = Annotated[list[Any], Field(min_length=1)]

_NOTHING: dict[str, Any] = {}

VARIANT, SEED = "variant", "seed"
"""Names of the axes that are no keys of `axes`."""


def _check_base(base: str | None) -> str | None:
    if base is not None:
        try:
            find_recipe(base)
        except MucoError as error:
            raise ValueError(str(error)) from None
    return base


class Stage(ComponentConfig):
    """One run of a cell that has several; it starts from the model of the run before it."""

    base: str
    """Recipe of the stage."""
    set: Changes = _NOTHING
    """Changes in every cell."""

    _base_exists = field_validator("base")(_check_base)


class Grid(ComponentConfig):
    """Runs that differ in named parts. A cell is one choice from `variants`, `paired` and `axes`."""

    name: FileName = "grid"
    """Name of the grid's folder; by default that of the file."""
    title: str = ""
    """What is compared, in a sentence; printed above the table."""
    base: str | None = None
    """Recipe that the cells change: a path, or the name of a shipped one."""
    stages: dict[FileName, Stage] = _NOTHING
    """Instead of `base`: recipes by name, trained one after the other. In all other keys `NAME.KEY` changes
    one stage, and KEY changes all. Cells that agree in a stage and those before it share its run."""
    set: Changes = _NOTHING
    """Changes in every cell."""
    variants: dict[FileName, Changes] = _NOTHING
    """Named changes; a cell takes one of them."""
    axes: dict[str, Values] = _NOTHING
    """Values by key; the cells are their product."""
    paired: tuple[dict[str, Values], ...] = ()
    """Keys whose values change together: the first value of each, the second of each, and so on."""
    exclude: tuple[Changes, ...] = ()
    """Cells to leave out: those that have all of an entry's values. A list of values stands for any."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """Each cell runs once with each; they set the recipes' `seed`."""
    baseline: Changes = _NOTHING
    """Values that only one cell has: the cell that others are compared with. By default the first."""
    metrics: tuple[str, ...] = ()
    """Columns of the table, as in summary.json; the first is compared. By default the mean of the first
    suite of the last stage."""
    draws: PositiveInt = 10_000
    """Draws of the bootstrap and of the permutation test."""

    _base_exists = field_validator("base")(_check_base)

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len({*seeds}) < len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds

    @field_validator("paired")
    @classmethod
    def _check_lengths(cls, paired: tuple[dict[str, list[Any]], ...]) -> tuple[dict[str, list[Any]], ...]:
        for group in paired:
            if len({len(values) for values in group.values()}) > 1:
                lengths = ", ".join(f"{key} has {len(values)}" for key, values in group.items())
                raise ValueError(f"values change together, so each key needs as many: {lengths}")
        return paired

    @model_validator(mode="after")
    def _check_keys(self) -> Grid:
        if (self.base is None) == (not self.stages):
            raise ValueError("give either `base` or `stages`, not both or neither")
        keys = [*self.axes, *(key for group in self.paired for key in group)]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"`{key}` is twice among `axes` and `paired`")
            if self.key_in_stages(key) == SEED:
                raise ValueError(f"`{key}` is no axis: list the seeds in `seeds`")
        return self

    def key_in_stages(self, key: str) -> str:
        """Return the key of a recipe that `KEY` or `STAGE.KEY` names."""
        stage, _, rest = key.partition(".")
        return rest if stage in self.stages else key

    @property
    def num_cells(self) -> int:
        """The number of runs before exclusions, stages not counted."""
        number = max(len(self.variants), 1) * len(self.seeds)
        for values in self.axes.values():
            number *= len(values)
        for group in self.paired:
            number *= len(next(iter(group.values()), [0]))
        return number


def load_grid(name: str, *, bases: Sequence[str] = ()) -> tuple[Grid, Lines]:
    """Read and validate a grid file; return it with the line of each key.

    Args:
        name: a path, or the name of a shipped grid, `recipes/ablations/table7_mask.yaml`.
        bases: each replaces the grid's base recipe; `STAGE=RECIPE` replaces that of a stage.

    Raises:
        MucoError: there is no such file, or a base does not fit the grid.
        RecipeError: the grid has problems; the error lists all of them.
    """
    values, lines = read_recipe(name)
    if "data" in values and not values.keys() & {"base", "stages"}:
        raise MucoError(f"{name}: this is a recipe, not a grid; `muco-run {name}` runs it")
    values.setdefault("name", Path(name).stem)
    for base in bases:
        _replace_base(name, values, lines, base)
    return validate_settings(Grid, values, title=name, lines=lines), lines


def _replace_base(name: str, values: dict[str, Any], lines: Lines, base: str) -> None:
    stage, equals, recipe = base.partition("=")
    stages = values.get("stages") or {}
    if not stages:
        values["base"] = base
        lines.pop(("base",), None)
    elif equals and isinstance(stages.get(stage), dict):
        stages[stage]["base"] = recipe
        lines.pop(("stages", stage, "base"), None)
    else:
        raise MucoError(
            f"--base {base}: {name} has stages; write --base STAGE=RECIPE. Stages: {', '.join(stages)}"
        )
