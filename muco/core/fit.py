"""Whether the components of a recipe have what they need of one another, and what would mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from muco.core.component import Component, ComponentConfig, Feature

Parts = Mapping[str, tuple[type[Component], ComponentConfig]]
"""Components and their settings by dotted key, `packer`, `data.turns.source`."""


def offered_by(parts: Parts) -> frozenset[Feature]:
    """Return what the components offer one another."""
    return frozenset[Feature]().union(*(cls.offers(config) for cls, config in parts.values()))


def missing_in(parts: Parts) -> dict[str, list[Feature]]:
    """Return what each component needs and none offers; those that have all are left out."""
    offered = offered_by(parts)
    missing = {path: sorted(cls.needs(config) - offered) for path, (cls, config) in parts.items()}
    return {path: features for path, features in missing.items() if features}


def remedies(parts: Parts) -> list[str]:
    """Return the changes of one component's choices, one or two of them, that make all parts fit.

    Only settings with a list of choices are tried; a change is told as it would be written,
    "`packer.context: isolated`".
    """
    for number in (1, 2):
        found = [
            " with ".join(f"`{path}.{name}: {value}`" for name, value in changes)
            for path, (_, config) in parts.items()
            for changes in combinations(_choices(config), number)
            if _mends(parts, path, dict(changes))
        ]
        if found:
            return found
    return []


def _mends(parts: Parts, path: str, values: Mapping[str, Any]) -> bool:
    """Say whether all parts fit once the component at `path` has other values."""
    cls, config = parts[path]
    try:
        changed = type(config).model_validate({**dict(config), **values})
    except ValidationError:
        return False
    return not missing_in({**parts, path: (cls, changed)})


def _choices(config: ComponentConfig) -> Iterator[tuple[str, Any]]:
    """Yield each setting with each value that it could have instead."""
    for name, field in type(config).model_fields.items():
        for value in _literals(field.annotation):
            if value != getattr(config, name):
                yield name, value


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _literals(part)
