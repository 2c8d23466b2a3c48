"""Read YAML of any origin in bounded time and memory, and remember the line of each key."""

from __future__ import annotations

import re
from typing import Any, cast

import yaml

from muco.core.component_ref import is_mapping
from muco.core.errors import Problem, RecipeError

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int | None]
"""1-based line of each key and list entry; None for a value from an override."""

MAX_CHARACTERS = 2**18
"""Limit on the text: some numbers take a time that grows with the square of their length."""
MAX_KEYS = 10_000
"""Limit on keys and entries with aliases expanded: a few lines of YAML can expand to billions."""


def parse_yaml(title: str, text: str) -> tuple[dict[str, Any], Lines]:
    """Return the values of a YAML mapping and the line of each key.

    Raises:
        RecipeError: the text is not a mapping; else as `read_yaml`.
    """
    values, lines = read_yaml(title, text)
    if not is_mapping(values):
        actual = "an empty file" if values is None else f"a {type(values).__name__}"
        raise RecipeError(title, [Problem("", f"a recipe is a mapping of keys; this is {actual}")])
    return values, lines


def read_yaml(title: str, text: str) -> tuple[Any, Lines]:
    """Return any value of YAML text and the line of each key.

    Raise RecipeError if it is not YAML, repeats a key or is too large; `title` names it in the message.
    """
    lines: Lines = {}
    problems: list[Problem] = []
    try:
        if len(text) > MAX_CHARACTERS:
            raise RecursionError
        node = cast(Any, yaml).compose(text, Loader=yaml.SafeLoader)  # its stubs are untyped here
        _LineCollector(lines, problems).visit(node, ())  # bounds what safe_load then builds
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


class _LineCollector:
    """Note the line of every key, and a problem for every repeated key: YAML would keep only the last."""

    def __init__(self, lines: Lines, problems: list[Problem]) -> None:
        self.lines, self.problems = lines, problems
        self.num_visited = 0

    def visit(self, node: Any, path: KeyPath) -> None:
        self.num_visited += 1
        if self.num_visited > MAX_KEYS:
            raise RecursionError
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                # A key that is a list or a mapping is refused when the values are built.
                child = (*path, str(key.value) if isinstance(key, yaml.ScalarNode) else "?")
                self._add_key(child, key.start_mark.line + 1)
                self.visit(value, child)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.lines[(*path, index)] = value.start_mark.line + 1
                self.visit(value, (*path, index))

    def _add_key(self, path: KeyPath, line: int) -> None:
        if path in self.lines and path[-1] != "?":
            message = f"given twice, first in line {self.lines[path]}"
            self.problems.append(Problem(dotted(path), message, line))
        self.lines[path] = line


def dotted(path: KeyPath) -> str:
    """Return `train.num_steps` for ("train", "num_steps"); a key of other characters is quoted."""
    return ".".join(f"{key}" if re.fullmatch(r"[\w-]+", f"{key}") else repr(key) for key in path)
