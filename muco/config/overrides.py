"""Apply `--set KEY=VALUE` to the values of a recipe or of a component."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard, cast

from muco.config.yaml_lines import KeyPath, Lines, dotted, read_yaml
from muco.core.component_ref import is_mapping
from muco.core.errors import MucoError, RecipeError


def apply_override(
    title: str,
    values: dict[str, Any],
    lines: Lines,
    override: str,
    is_component: Callable[[KeyPath], bool],
) -> None:
    """Set the value of `KEY=VALUE` in place and drop the lines of what it replaces.

    The key is dotted, a number in it indexes a list; the value is YAML. Where a component is picked by its
    name only and the key leads into it, the name becomes the mapping that it stands for.
    """
    key, value = read_assignment("--set", override)
    try:
        path = set_value(title, values, key, value, is_component)
    except MucoError as error:
        raise MucoError(f"--set {key}: {error}") from None
    forget_lines(lines, path)
    lines[path] = None


def read_assignment(option: str, text: str) -> tuple[str, Any]:
    """Return key and value of `KEY=VALUE`, the value as YAML; raise MucoError that begins with `option`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise MucoError(f"{option} {text}: write KEY=VALUE, as in {option} train.num_steps=10")
    try:
        return key, read_yaml("", value)[0]
    except RecipeError:
        raise MucoError(f"{option} {text}: the value is not YAML; quote it") from None


def set_value(
    title: str,
    values: dict[str, Any],
    key: str,
    value: Any,
    is_component: Callable[[KeyPath], bool] = lambda path: False,
) -> KeyPath:
    """Set the value of a dotted key and return its path; raise MucoError if the key leads nowhere."""
    *parents, last = key.split(".")
    container: Any = values
    path: KeyPath = ()
    for part in parents:
        index = _index(container, part)
        path = (*path, index)
        container = _child(container, index, path, is_component)
        if container is None:
            raise MucoError(f"{dotted(path)} of {title} has no keys")
    index = _index(container, last)
    if _is_list(container) and not (isinstance(index, int) and index < len(container)):
        raise MucoError(f"{dotted(path)} has entries 0 to {len(container) - 1}")
    cast(Any, container)[index] = value
    return (*path, index)


def forget_lines(lines: Lines, path: KeyPath) -> None:
    """Remove the lines of a value that was replaced, and of all within it."""
    for replaced in [known for known in lines if known[: len(path)] == path]:
        del lines[replaced]


def _index(container: Any, part: str) -> str | int:
    """Return one part of a dotted key, as a number where it indexes a list."""
    return int(part) if _is_list(container) and part.isdecimal() else part


def _child(container: Any, index: str | int, path: KeyPath, is_component: Callable[[KeyPath], bool]) -> Any:
    """Return the mapping or list at `index`, a new mapping where nothing is set; None for a plain value."""
    try:
        if is_mapping(container) and container.get(index) is None:
            container[index] = {}
        child: Any = container[index]
        if isinstance(child, str) and is_component(path):
            child = container[index] = {"name": child}
    except (KeyError, IndexError, TypeError):
        return None
    return child if is_mapping(child) or _is_list(child) else None


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)
