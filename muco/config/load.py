"""Load and validate a recipe: find the file, apply overrides, report all problems at once."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from muco.config.overrides import apply_override
from muco.config.problems import problems_of
from muco.config.recipe import Recipe
from muco.config.schema_walk import is_component
from muco.config.yaml_lines import Lines, read_yaml
from muco.core.component_ref import is_mapping
from muco.core.errors import MucoError, Problem, RecipeError, closest
from muco.core.registry import Registry, default_registry

S = TypeVar("S", bound=BaseModel)


def find_recipe(name: str) -> Path:
    """Return the file at a path, else the shipped recipe of that name: `quickstart`, `quickstart.yaml`."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(str(files("muco.recipes")))
    relative = path.relative_to("recipes") if path.parts[:1] == ("recipes",) else path
    for candidate in (shipped / relative, (shipped / relative).with_suffix(".yaml")):
        if candidate.is_file() and not path.is_absolute() and ".." not in path.parts:
            return candidate
    raise MucoError(f"{name}: no such file, and no recipe of that name is shipped.{_near(relative, shipped)}")


def _near(path: Path, shipped: Path) -> str:
    """Return the shipped recipe of a similar name as a question, or else the names of all in the folder."""
    files = sorted(shipped.rglob("*.yaml"))
    names = {file.stem: f"recipes/{file.relative_to(shipped).as_posix()}" for file in files}
    if near := closest(path.stem, list(names)):
        return f" Did you mean {names[near]!r}?"
    folder = shipped / path.parent if (shipped / path.parent).is_dir() else shipped
    return "\nShipped: " + ", ".join(names[file.stem] for file in files if file.parent == folder)


def load_recipe(name: str, overrides: Sequence[str] = (), *, registry: Registry | None = None) -> Recipe:
    """Read a recipe, apply overrides and validate it.

    Args:
        name: a path, or the name of a shipped recipe.
        overrides: `KEY=VALUE` each. The key is dotted, the value is YAML.
        registry: where component names are looked up; by default all installed packages.

    Raises:
        MucoError: there is no such file, or an override is malformed.
        RecipeError: the recipe has problems; the error lists all of them.
    """
    values, lines = read_recipe(name)
    if "data" not in values and values.keys() & {"base", "stages"}:
        raise MucoError(f"{name}: this is a grid, not a recipe; `muco ablate {name}` runs it")
    return validate_settings(Recipe, values, overrides, title=name, lines=lines, registry=registry)


def read_recipe(name: str) -> tuple[dict[str, Any], Lines]:
    """Return the values of a recipe file and the line of each key; raise MucoError if there are none."""
    try:
        text = find_recipe(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MucoError(f"{name}: cannot be read: {error}") from error
    values, lines = read_yaml(name, text)
    if not is_mapping(values):
        actual = "an empty file" if values is None else f"a {type(values).__name__}"
        raise RecipeError(name, [Problem("", f"a recipe is a mapping of keys; this is {actual}")])
    return values, lines


def validate_settings(
    schema: type[S],
    values: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    title: str,
    lines: Lines | None = None,
    registry: Registry | None = None,
) -> S:
    """Return validated settings, overrides written into `values`; raise RecipeError with all problems."""
    registry, lines = registry or default_registry(), {} if lines is None else lines
    for override in overrides:
        apply_override(
            title, values, lines, override, lambda path: is_component(path, schema, values, registry)
        )
    try:
        return schema.model_validate(values, context={"registry": registry})
    except ValidationError as error:
        raise RecipeError(title, problems_of(error, schema, values, lines, registry)) from None
