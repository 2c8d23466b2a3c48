"""Check that the components of a recipe offer what the others need, and find settings that fix it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from muco.core.component import Component, ComponentConfig, Feature
from muco.core.errors import MucoError, PluginError
from muco.core.registry import default_registry

Components = Mapping[str, tuple[type[Component], ComponentConfig]]
"""Components and their settings by dotted key: `packer`, `data.turns.source`."""


def offered_by(components: Components) -> frozenset[Feature]:
    """Return all features that the components offer."""
    return frozenset[Feature]().union(*(cls.offers(config) for cls, config in components.values()))


def missing_in(components: Components) -> dict[str, list[Feature]]:
    """Return, by key, the features that a component needs and none offers; only where there are any."""
    offered = offered_by(components)
    missing = {path: sorted(cls.needs(config) - offered) for path, (cls, config) in components.items()}
    return {path: features for path, features in missing.items() if features}


def fixes(components: Components) -> list[str]:
    """Return changes of one or two settings of one component with which nothing is missing.

    Only settings with a fixed list of values are tried. Each change reads as in a recipe:
    "`packer.context: isolated`".
    """
    for num_changes in (1, 2):
        working = [
            " with ".join(f"`{path}.{name}: {value}`" for name, value in changes)
            for path, (_, config) in components.items()
            for changes in combinations(_other_values(config), num_changes)
            if _fixed_by(components, path, dict(changes))
        ]
        if working:
            return working
    return []


def backbones_offering(*features: Feature) -> list[str]:
    """Return the registered backbones that offer all features by default.

    Backbones with required settings, and those that cannot be imported, are left out.
    """
    names: list[str] = []
    for entry in default_registry().entries("backbone"):
        try:
            cls = default_registry().component("backbone", entry.name)
        except PluginError:
            continue
        has_defaults = not any(field.is_required() for field in cls.Config.model_fields.values())
        if has_defaults and cls.offers(cls.Config.model_construct()) >= set(features):
            names.append(entry.name)
    return names


def no_video(who: str) -> MucoError:
    """Return the error for a video given to a backbone that reads none; `who` begins the sentence."""
    names = ", ".join(backbones_offering("video"))
    return MucoError(f"{who} reads no video, but the data contain one. Backbones that read videos: {names}")


def _fixed_by(components: Components, path: str, values: Mapping[str, Any]) -> bool:
    """Say whether nothing is missing once the component at `path` has these values."""
    cls, config = components[path]
    try:
        changed = type(config).model_validate(_with_values(config, values))
    except ValidationError:
        return False
    return not missing_in({**components, path: (cls, changed)})


def _with_values(config: ComponentConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with other values; names of nested settings are dotted."""
    changed: dict[str, Any] = dict(config)
    for name, value in values.items():
        head, dot, rest = name.partition(".")
        changed[head] = type(changed[head])(**_with_values(changed[head], {rest: value})) if dot else value
    return changed


def _other_values(config: ComponentConfig) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name of each setting with each value that it could have instead."""
    for name, field in type(config).model_fields.items():
        current = getattr(config, name)
        if isinstance(current, ComponentConfig):
            yield from ((f"{name}.{inner}", value) for inner, value in _other_values(current))
        else:
            yield from ((name, value) for value in _literals(field.annotation) if value != current)


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _literals(part)
