"""Read YAML of any origin in bounded time and memory, and remember the line of each key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import yaml

from muco.core.errors import Problem, RecipeError

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int | None]
"""1-based line of each key and list entry; None for a value from an override."""

MAX_CHARACTERS = 2**18
"""Limit on the text: some numbers take a time that grows with the square of their length."""
MAX_KEYS = 10_000
"""Limit on keys and entries with aliases expanded: a few lines of YAML can expand to billions."""


def read_yaml(title: str, text: str) -> tuple[Any, Lines]:
    """Return the value of YAML and the line of each key; raise RecipeError, of `title`, if it is broken."""
    lines: Lines = {}
    problems: list[Problem] = []
    try:
        if len(text) > MAX_CHARACTERS:
            raise RecursionError
        node = cast(Any, yaml).compose(text, Loader=yaml.SafeLoader)  # its stubs are untyped here
        for number, (path, line) in enumerate(_keys(node, ())):
            if number == MAX_KEYS:  # bounds what safe_load builds
                raise RecursionError
            if path in lines and isinstance(path[-1], str) and path[-1] != "?":
                # YAML would keep only the last.
                problems.append(Problem(dotted(path), f"given twice, first in line {lines[path]}", line))
            lines[path] = line
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise RecipeError(title, [Problem("", f"not YAML: {error.problem}", line)]) from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise RecipeError(title, [Problem("", f"not YAML: {error}")]) from None
    except RecursionError:
        message = "nested too deeply, or too large with its aliases expanded"
        raise RecipeError(title, [Problem("", message)]) from None
    if problems:
        raise RecipeError(title, problems)
    return values, lines


def _keys(node: Any, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    """Yield the path and the line of every key and list entry below a node, aliases expanded."""
    children: list[tuple[KeyPath, int, Any]] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            # A key that is a list or a mapping is refused when the values are built.
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            children.append(((*path, name), key.start_mark.line + 1, value))
    elif isinstance(node, yaml.SequenceNode):
        children = [
            ((*path, index), value.start_mark.line + 1, value) for index, value in enumerate(node.value)
        ]
    for child, line, value in children:
        yield child, line
        yield from _keys(value, child)


def dotted(path: KeyPath) -> str:
    """Return `train.num_steps` for ("train", "num_steps"); a key of other characters is quoted."""
    return ".".join(f"{key}" if re.fullmatch(r"[\w-]+", f"{key}") else repr(key) for key in path)
