"""Turn pydantic's validation errors into problems with a line and a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from muco.config.schema_walk import allowed_keys, is_component
from muco.config.yaml_lines import KeyPath, Lines, dotted
from muco.core.component_ref import is_mapping
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

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping of keys",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "model_attributes_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "string_type": "text",
    "tuple_type": "a list, [a, b]",
}
"""What a value must be, by pydantic's type of error."""


def problems_of(
    error: ValidationError,
    schema: type[BaseModel],
    values: Mapping[str, Any],
    lines: Lines,
    registry: Registry,
) -> list[Problem]:
    """Return a problem for each value that `schema.model_validate(values)` refused, in the file's order."""
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_path_in(values, detail), []).append(detail)
    problems = [
        Problem(dotted(path), _message(path, details, schema, values, registry), _line(path, lines))
        for path, details in by_path.items()
        # Pydantic counts an entry that is wrong itself as missing.
        if not (
            details[0]["type"] == "too_short"
            and any(other[: len(path)] == path != other for other in by_path)
        )
    ]
    return sorted(problems, key=lambda problem: problem.line or 0)


def _path_in(values: Any, detail: ErrorDetails) -> KeyPath:
    """Return the keys of an error's path, without those that pydantic adds: the members of a union."""
    path: KeyPath = ()
    is_missing = detail["type"] == "missing"
    keys = detail["loc"][:-1] if is_missing else detail["loc"]
    for key in keys:
        if is_mapping(values) and key in values:
            values, path = values[key], (*path, str(key))
        elif isinstance(values, list) and isinstance(key, int):
            values, path = values[key], (*path, key)  # pyright: ignore
    if is_missing and isinstance(detail["loc"][-1], str):
        return (*path, detail["loc"][-1])
    return (*path, "name") if detail["type"] == "component_name" else path


def _line(path: KeyPath, lines: Lines) -> int | None:
    """Return the line of a key, or of the nearest key above it."""
    ends = range(len(path), 0, -1)
    return next((lines[path[:end]] for end in ends if path[:end] in lines), None)


def _message(
    path: KeyPath,
    details: list[ErrorDetails],
    schema: type[BaseModel],
    values: Mapping[str, Any],
    registry: Registry,
) -> str:
    kind = details[0]["type"]
    if kind == "extra_forbidden":
        known = allowed_keys(path[:-1], schema, values, registry)
        return _unknown_key(str(path[-1]), known, _component_name(path[:-1], schema, values, registry))
    if kind == "invalid_key" or (kind == "string_type" and details[0]["loc"][-1] == "[key]"):
        return "a key must be text; write it in quotes"
    if kind == "missing":
        is_entry = isinstance(details[0]["loc"][-1], int)
        return "has too few entries" if is_entry else "missing; it has no default"
    if kind in ("component", "component_name", "value_error"):  # muco wrote their messages
        return details[0]["msg"].removeprefix("Value error, ")
    first, *others = dict.fromkeys(map(_expected, details))
    expected = " or ".join([first, *(other.removeprefix("be ") for other in others)])
    return f"must {expected}, not {_shown(details[0]['input'])}"


def _expected(detail: ErrorDetails) -> str:
    """Return what a value must be, as the end of a sentence: "be a number"."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in ("too_long", "too_short"):
        is_long = kind == "too_long"
        limit = context["max_length" if is_long else "min_length"]
        return f"have at {'most' if is_long else 'least'} {limit} {'entry' if limit == 1 else 'entries'}"
    if kind in _EXPECTED:
        return f"be {_EXPECTED[kind]}"
    return detail["msg"].replace("Input should be", "be", 1)


def _shown(value: Any) -> str:
    """Return a value as a message shows it: short, and no mapping or list spelt out."""
    if is_mapping(value):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if len(repr(value)) > 30 else str(list(value))  # pyright: ignore
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown_key(key: str, allowed: list[str], component: str) -> str:
    renamed = RENAMED.get(key, "")
    if renamed.split(":")[0] in allowed:
        return f"this key is now `{renamed}`"
    near = did_you_mean(key, allowed)
    missing = f"`{component}` has no such key" if component else "no such key"
    return f"{missing}.{near}" + (f" Allowed: {', '.join(allowed)}" if allowed and not near else "")


def _component_name(path: KeyPath, schema: type[BaseModel], values: Any, registry: Registry) -> str:
    """Return the name of the component whose settings are at `path`; empty for other keys."""
    if not is_component(path, schema, values, registry):
        return ""
    for key in path:
        values = values[key]
    return str(values["name"]) if is_mapping(values) else ""
