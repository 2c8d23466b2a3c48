"""Reading a recipe: YAML with line numbers, `--set` overrides, and every problem at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, TypeGuard, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from muco.config.recipe import Evaluation, Recipe
from muco.core.component_ref import ComponentRef, is_mapping, kind_of
from muco.core.errors import MucoError, Problem, RecipeError, did_you_mean
from muco.core.registry import Registry, default_registry

S = TypeVar("S", bound=BaseModel)

Path_ = tuple[str | int, ...]
Lines = dict[Path_, int | None]
"""The line of each key and entry; None where an override put it."""

_RENAMED = {
    "checkpoint_activations": "gradient_checkpointing",
    "direction": "attention_direction",
    "get": "how_to_get",
    "gradients": "grad_cache: true",
    "samples_per_step": "global_batch_size",
    "scratch": "random_init",
    "store": "embedding_dtype",
}
"""Keys of version 0.1.0 and what they are called now."""

_MOST_KEYS = 10_000
"""Keys and entries of a recipe, aliases written out: a few lines of YAML can stand for billions."""


def find_recipe(name: str) -> Path:
    """Return the recipe file: the path on disk, else the shipped recipe of that name.

    `recipes/quickstart.yaml`, `quickstart.yaml` and `quickstart` all find the shipped one.

    Raises:
        MucoError: neither is there.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(str(files("muco.recipes")))
    relative = path.relative_to("recipes") if path.parts[:1] == ("recipes",) else path
    for candidate in (shipped / relative, (shipped / relative).with_suffix(".yaml")):
        if candidate.is_file() and not path.is_absolute() and ".." not in path.parts:
            return candidate
    ours = sorted(file.relative_to(shipped).as_posix() for file in shipped.rglob("*.yaml"))
    near = did_you_mean(relative.as_posix(), ours)
    raise MucoError(
        f"{name}: no such file, and no recipe of that name is shipped.{near}\n"
        "Shipped: " + ", ".join(f"recipes/{file}" for file in ours)
    )


def load_recipe(name: str, overrides: Sequence[str] = (), *, registry: Registry | None = None) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name: a path, or the name of a shipped recipe.
        overrides: `KEY=VALUE` each, the key dotted, the value YAML.
        registry: where names are looked up; by default all installed packages.

    Raises:
        MucoError: there is no such file.
        RecipeError: all that is wrong with it.
    """
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MucoError(f"{name}: cannot be read: {error}") from error
    values, lines = _parse(name, text)
    for override in overrides:
        _override(name, values, lines, override)
    return validate_recipe(values, title=name, lines=lines, registry=registry)


def validate_recipe(
    values: Mapping[str, Any],
    *,
    title: str,
    lines: Lines | None = None,
    registry: Registry | None = None,
) -> Recipe:
    """Return the typed recipe; raise RecipeError with all problems, each with its line."""
    return _validate(Recipe, values, title, lines or {}, registry or default_registry())


def validate_evaluation(
    values: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    title: str,
    registry: Registry | None = None,
) -> Evaluation:
    """Return an evaluation without a recipe of its own; raise RecipeError with all problems.

    Args:
        values: its keys.
        overrides: `KEY=VALUE` each, as for a recipe; put into `values`.
        title: what problems are told of.
        registry: where names are looked up; by default all installed packages.
    """
    lines: Lines = {}
    for override in overrides:
        _override(title, values, lines, override)
    return _validate(Evaluation, values, title, lines, registry or default_registry())


def _validate(schema: type[S], values: Mapping[str, Any], title: str, lines: Lines, registry: Registry) -> S:
    try:
        return schema.model_validate(dict(values), context={"registry": registry})
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [_problem(detail, schema, values, lines, registry) for detail in details]
        raise RecipeError(title, sorted(problems, key=lambda problem: problem.line or 0)) from None


def _parse(title: str, text: str) -> tuple[dict[str, Any], Lines]:
    lines: Lines = {}
    problems: list[Problem] = []
    try:
        node = cast(Any, yaml).compose(text, Loader=yaml.SafeLoader)  # its stubs are untyped here
        values = yaml.safe_load(text)
        _walk(node, (), lines, problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise RecipeError(title, [Problem("", f"not YAML: {error.problem}", line)]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(title, [Problem("", f"not YAML: {error}")]) from None
    except RecursionError:
        told = "nested too deeply, or too large once its aliases are written out"
        raise RecipeError(title, [Problem("", told)]) from None
    if not is_mapping(values):
        found = "an empty file" if values is None else f"a {type(values).__name__}"
        raise RecipeError(title, [Problem("", f"a recipe is a mapping of keys; this is {found}")])
    if problems:
        raise RecipeError(title, problems)
    return values, lines


def _walk(node: Any, path: Path_, lines: Lines, problems: list[Problem]) -> None:
    """Note the line of every key, and keys that are given twice: YAML would drop the first."""
    if len(lines) > _MOST_KEYS:
        raise RecursionError
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            line = key.start_mark.line + 1
            if here in lines:
                problems.append(Problem(_dotted(here), f"given twice, first in line {lines[here]}", line))
            lines[here] = line
            _walk(value, here, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _walk(value, (*path, index), lines, problems)


def _override(title: str, values: dict[str, Any], lines: Lines, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise MucoError(f"--set {override}: write KEY=VALUE, as in --set train.num_steps=10")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise MucoError(f"--set {override}: the value is no YAML; quote it") from None
    *parents, last = key.split(".")
    place: Any = values
    path: Path_ = ()
    for part in parents:
        step = _step(place, part)
        path = (*path, step)
        place = _inside(place, step)
        if place is None:
            raise MucoError(f"--set {key}: {_dotted(path)} of {title} holds no keys")
    step = _step(place, last)
    if _is_list(place) and not (isinstance(step, int) and step < len(place)):
        raise MucoError(f"--set {key}: {_dotted(path)} has entries 0 to {len(place) - 1}")
    cast(Any, place)[step] = value
    for stale in [known for known in lines if known[: len(path) + 1] == (*path, step)]:
        del lines[stale]
    lines[(*path, step)] = None


def _step(place: Any, part: str) -> str | int:
    """Return one part of a dotted key: a number where it picks from a list."""
    return int(part) if _is_list(place) and part.isdecimal() else part


def _inside(place: Any, step: str | int) -> Any:
    """Return what holds keys at `step`, a new mapping where there is nothing; None for a plain value."""
    try:
        if is_mapping(place) and place.get(step) is None:
            place[step] = {}
        found: Any = place[step]
    except (KeyError, IndexError, TypeError):
        return None
    return found if is_mapping(found) or _is_list(found) else None


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _problem(
    detail: ErrorDetails, schema: type[BaseModel], values: Mapping[str, Any], lines: Lines, registry: Registry
) -> Problem:
    loc: Path_ = tuple(detail["loc"])
    kind = detail["type"]
    if kind == "component_name":
        loc = (*loc, "name")
    line = next((lines[loc[:end]] for end in range(len(loc), 0, -1) if loc[:end] in lines), None)
    if kind == "extra_forbidden":
        known = _fields_at(loc[:-1], schema, values, registry)
        renamed = _RENAMED.get(str(loc[-1]), "")
        if renamed.split(":")[0] in known:
            return Problem(_dotted(loc), f"this key is now `{renamed}`", lines.get(loc))
        near = did_you_mean(str(loc[-1]), known)
        allowed = f" Allowed: {', '.join(known)}" if known and not near else ""
        return Problem(_dotted(loc), f"no such key.{near}{allowed}", lines.get(loc))
    if kind == "missing":
        return Problem(_dotted(loc), "missing; it has no default", line)
    message = detail["msg"].removeprefix("Value error, ")
    if kind not in ("component", "component_name", "features", "one_of", "value_error"):
        shown = repr(detail["input"])
        message = message.replace("Input should be", "must be", 1)
        message = f"{message}, not {shown if len(shown) <= 60 else shown[:57] + '...'}"
    return Problem(_dotted(loc), message, line)


def _fields_at(path: Path_, schema: type[BaseModel], values: Any, registry: Registry) -> list[str]:
    """Return the keys allowed at `path`, following the schema and the components picked there."""
    annotation: Any = schema
    place: Any = values
    for part in path:
        model = _model_of(annotation, place, registry)
        if model is None:
            annotation = _item_of(annotation)
        else:
            field = model.model_fields.get(str(part))
            annotation = field.annotation if field else None
        inside = (isinstance(place, dict) and part in place) or isinstance(place, list)
        place = place[part] if inside else None  # type: ignore[index]
    model = _model_of(annotation, place, registry)
    picks = ["name"] if _part_of(annotation, _is_component) is not None else []
    return picks + list(model.model_fields) if model else []


def _model_of(annotation: Any, place: Any, registry: Registry) -> type[BaseModel] | None:
    """Return the model that a value of this annotation is validated by, if any."""
    ref = _part_of(annotation, _is_component)
    if ref is None:
        return _part_of(annotation, lambda part: isinstance(part, type) and issubclass(part, BaseModel))
    name = place.get("name") if is_mapping(place) else place
    return registry.component(kind_of(get_args(ref)[0]), name).Config if isinstance(name, str) else None


def _is_component(annotation: Any) -> bool:
    return get_origin(annotation) is ComponentRef


def _part_of(annotation: Any, wanted: Callable[[Any], bool]) -> Any:
    """Return the part of an annotation that is wanted, looking through unions."""
    if wanted(annotation):
        return annotation
    if get_origin(annotation) not in (Union, UnionType):
        return None
    return next((part for part in get_args(annotation) if wanted(part)), None)


def _item_of(annotation: Any) -> Any:
    """Return the annotation of a dict's values or of a tuple's items."""
    arguments = [part for part in get_args(annotation) if part is not Ellipsis]
    return arguments[-1] if arguments else None


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))
