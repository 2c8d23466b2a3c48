"""Whether the components of a recipe have what they need of one another, and what would mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from muco.core.component import Component, ComponentConfig, Feature
from muco.core.errors import MucoError, PluginError
from muco.core.registry import default_registry

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


def backbones_offering(feature: Feature) -> list[str]:
    """Return the registered backbones that offer a feature by default; one without defaults is left out."""
    found: list[str] = []
    for entry in default_registry().entries("backbone"):
        try:
            cls = default_registry().component("backbone", entry.name)
        except PluginError:
            continue
        if any(field.is_required() for field in cls.Config.model_fields.values()):
            continue
        if feature in cls.offers(cls.Config.model_construct()):
            found.append(entry.name)
    return found


def no_video(who: str) -> MucoError:
    """Return the error of a backbone that meets a video and reads none; `who` begins the sentence."""
    able = ", ".join(backbones_offering("video"))
    return MucoError(f"{who} reads no video, and the data hold one. Backbones that read videos: {able}")


def _mends(parts: Parts, path: str, values: Mapping[str, Any]) -> bool:
    """Say whether all parts fit once the component at `path` has other values."""
    cls, config = parts[path]
    try:
        changed = type(config).model_validate(_changed(config, values))
    except ValidationError:
        return False
    return not missing_in({**parts, path: (cls, changed)})


def _changed(config: ComponentConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with other values; those of a group within them have dotted names."""
    found: dict[str, Any] = dict(config)
    for name, value in values.items():
        head, dot, rest = name.partition(".")
        found[head] = type(found[head])(**_changed(found[head], {rest: value})) if dot else value
    return found


def _choices(config: ComponentConfig) -> Iterator[tuple[str, Any]]:
    """Yield each setting with each value that it could have instead, by its dotted name."""
    for name, field in type(config).model_fields.items():
        own = getattr(config, name)
        if isinstance(own, ComponentConfig):
            yield from ((f"{name}.{inner}", value) for inner, value in _choices(own))
            continue
        for value in _literals(field.annotation):
            if value != own:
                yield name, value


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _literals(part)
