"""Turn pydantic's validation errors into problems with a line and a remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from muco.config.yaml_lines import KeyPath, Lines, dotted
from muco.core.component_ref import ComponentRef, is_mapping, kind_of
from muco.core.errors import Problem, did_you_mean
from muco.core.registry import Registry

RENAMED = {
    "checkpoint_activations": "gradient_checkpointing",
    "direction": "attention_direction",
    "get": "how_to_get",
    "gradients": "grad_cache: true",
    "keep": "range_max: skip + keep",
    "samples_per_step": "global_batch_size",
    "scratch": "random_init",
    "skip": "range_min",
    "store": "embedding_dtype",
}
"""New name of each key that was renamed."""

OWN_ERRORS = ("component", "component_name", "value_error")
"""Types of errors whose messages muco wrote; the others are pydantic's."""


def problems_of(
    error: ValidationError,
    schema: type[BaseModel],
    values: Mapping[str, Any],
    lines: Lines,
    registry: Registry,
) -> list[Problem]:
    """Return a problem for each error, in the order of the file.

    Args:
        error: what `schema.model_validate(values)` raised.
        schema: the model.
        values: what was validated.
        lines: the line of each key.
        registry: where component names are looked up.
    """
    details = error.errors(include_url=False)
    problems = [_problem(detail, schema, values, lines, registry) for detail in details]
    return sorted(problems, key=lambda problem: problem.line or 0)


def _problem(
    detail: ErrorDetails, schema: type[BaseModel], values: Mapping[str, Any], lines: Lines, registry: Registry
) -> Problem:
    path: KeyPath = tuple(detail["loc"])
    if detail["type"] == "extra_forbidden":
        allowed = _allowed_keys(path[:-1], schema, values, registry)
        return Problem(dotted(path), _unknown_key(str(path[-1]), allowed), lines.get(path))
    if detail["type"] == "component_name":
        path = (*path, "name")
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    return Problem(dotted(path), _message(detail), line)


def _message(detail: ErrorDetails) -> str:
    if detail["type"] == "missing":
        return "missing; it has no default"
    if detail["type"] in OWN_ERRORS:
        return detail["msg"].removeprefix("Value error, ")
    value = repr(detail["input"])
    message = detail["msg"].replace("Input should be", "must be", 1)
    return f"{message}, not {value if len(value) <= 60 else value[:57] + '...'}"


def _unknown_key(key: str, allowed: list[str]) -> str:
    renamed = RENAMED.get(key, "")
    if renamed.split(":")[0] in allowed:
        return f"this key is now `{renamed}`"
    near = did_you_mean(key, allowed)
    return f"no such key.{near}" + (f" Allowed: {', '.join(allowed)}" if allowed and not near else "")


def _allowed_keys(path: KeyPath, schema: type[BaseModel], values: Any, registry: Registry) -> list[str]:
    """Return the keys allowed at `path`, following the schema and the components named in `values`."""
    annotation: Any = schema
    value: Any = values
    for key in path:
        model = _model_of(annotation, value, registry)
        if model is None:  # a dict or a tuple: the annotation of its values
            arguments = [part for part in get_args(annotation) if part is not Ellipsis]
            annotation = arguments[-1] if arguments else None
        else:
            field = model.model_fields.get(str(key))
            annotation = field.annotation if field else None
        has_key = (isinstance(value, dict) and key in value) or isinstance(value, list)
        value = value[key] if has_key else None  # type: ignore[index]
    model = _model_of(annotation, value, registry)
    name = ["name"] if _union_member(annotation, _is_component) is not None else []
    return name + list(model.model_fields) if model else []


def _model_of(annotation: Any, value: Any, registry: Registry) -> type[BaseModel] | None:
    """Return the model that validates a value of this annotation, if any."""
    ref = _union_member(annotation, _is_component)
    if ref is None:
        return _union_member(annotation, lambda part: isinstance(part, type) and issubclass(part, BaseModel))
    name = value.get("name") if is_mapping(value) else value
    return registry.component(kind_of(get_args(ref)[0]), name).Config if isinstance(name, str) else None


def _is_component(annotation: Any) -> bool:
    return get_origin(annotation) is ComponentRef


def _union_member(annotation: Any, matches: Callable[[Any], bool]) -> Any:
    """Return the annotation, or the first member of a union, that matches; None if none does."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    return next((member for member in members if matches(member)), None)
