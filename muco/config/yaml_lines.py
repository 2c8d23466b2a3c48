"""Parse YAML and remember the line of each key."""

from __future__ import annotations

from typing import Any, cast

import yaml

from muco.core.component_ref import is_mapping
from muco.core.errors import Problem, RecipeError

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int | None]
"""1-based line of each key and list entry; None for a value from an override."""

MAX_KEYS = 10_000
"""Limit on keys and entries with aliases expanded: a few lines of YAML can expand to billions."""


def parse_yaml(title: str, text: str) -> tuple[dict[str, Any], Lines]:
    """Return the values of a YAML mapping and the line of each key.

    Raises:
        RecipeError: the text is not YAML, not a mapping, too large, or repeats a key. `title` names the file.
    """
    lines: Lines = {}
    problems: list[Problem] = []
    try:
        node = cast(Any, yaml).compose(text, Loader=yaml.SafeLoader)  # its stubs are untyped here
        values: Any = yaml.safe_load(text)
        _collect_lines(node, (), lines, problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise RecipeError(title, [Problem("", f"not YAML: {error.problem}", line)]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(title, [Problem("", f"not YAML: {error}")]) from None
    except RecursionError:
        message = "nested too deeply, or too large with its aliases expanded"
        raise RecipeError(title, [Problem("", message)]) from None
    if not is_mapping(values):
        actual = "an empty file" if values is None else f"a {type(values).__name__}"
        raise RecipeError(title, [Problem("", f"a recipe is a mapping of keys; this is {actual}")])
    if problems:
        raise RecipeError(title, problems)
    return values, lines


def _collect_lines(node: Any, path: KeyPath, lines: Lines, problems: list[Problem]) -> None:
    """Add the line of every key, and a problem for every repeated key: YAML would keep only the last."""
    if len(lines) > MAX_KEYS:
        raise RecursionError
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, key.value)
            line = key.start_mark.line + 1
            if child in lines:
                problems.append(Problem(dotted(child), f"given twice, first in line {lines[child]}", line))
            lines[child] = line
            _collect_lines(value, child, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _collect_lines(value, (*path, index), lines, problems)


def dotted(path: KeyPath) -> str:
    """Return `train.num_steps` for ("train", "num_steps")."""
    return ".".join(map(str, path))
