"""The registry: which components there are, who provides them, and their classes on use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import pluggy

from muco.core import hookspecs
from muco.core.component import KINDS, Component, ComponentConfig, Kind
from muco.core.errors import PluginError, did_you_mean


@dataclass(frozen=True)
class Entry:
    """A declared component."""

    kind: Kind
    name: str
    target: str
    """`module:Class`."""
    provider: str
    """Distribution and version, `muco 0.1.0`."""


class Registry:
    """Components by kind and name; filled by hooks, never by importing the components."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._entries: dict[Kind, dict[str, Entry]] = {kind: {} for kind in KINDS}

    def add(self, plugin: Any, *, provider: str) -> None:
        """Take the declarations of one plugin module.

        Raises:
            PluginError: a misspelt hook, another contract version, a name that is taken, a hook that does
                not declare names and places.
        """
        contract = getattr(plugin, "muco_contract", None)
        if contract != hookspecs.CONTRACT:
            stated = "states no `muco_contract`" if contract is None else f"is built for contract {contract}"
            raise PluginError(
                f"plugin {plugin.__name__} ({provider}; hooks: {', '.join(_declared(plugin)) or 'none'}) "
                f"{stated}; this muco speaks contract {hookspecs.CONTRACT}. Install a release of the plugin "
                "that does."
            )
        try:
            self._manager.register(plugin)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            told = _misspelt(plugin, provider) or f"plugin {plugin.__name__} ({provider}): {error}"
            raise PluginError(told) from None
        for kind, hook in hookspecs.HOOKS.items():
            declare = getattr(plugin, hook, None)
            if declare is not None:
                for name, target in _declarations(plugin, hook, declare, provider).items():
                    self._declare(Entry(kind, name, target, provider))  # type: ignore[arg-type]

    def _declare(self, entry: Entry) -> None:
        taken = self._entries[entry.kind].get(entry.name)
        if taken is not None:
            raise PluginError(
                f"two {entry.kind} components are named {entry.name!r}: {taken.target} ({taken.provider}) "
                f"and {entry.target} ({entry.provider}), hook {hookspecs.HOOKS[entry.kind]}. "
                "Rename one, or uninstall one of the packages."
            )
        self._entries[entry.kind][entry.name] = entry

    def __iter__(self) -> Iterator[Entry]:
        for kind in KINDS:
            yield from sorted(self._entries[kind].values(), key=lambda entry: entry.name)

    def entries(self, kind: Kind) -> list[Entry]:
        """Return the components of one kind, by name."""
        return [entry for entry in self if entry.kind == kind]

    def find(self, kind: Kind, name: str) -> Entry:
        """Return the declaration; raise LookupError, saying which names there are."""
        try:
            return self._entries[kind][name]
        except KeyError:
            known = [f"{entry.name} ({entry.provider})" for entry in self.entries(kind)]
            near = did_you_mean(name, list(self._entries[kind]))
            raise LookupError(
                f"no {kind} named {name!r}.{near}\nRegistered: {', '.join(known) or 'none'}"
            ) from None

    def component(self, kind: Kind, name: str) -> type[Component]:
        """Import and return the class.

        Raises:
            LookupError: no such name.
            PluginError: the declaration does not lead to a class of that kind with a `Config` and every
                method that the interface leaves to write.
        """
        entry = self.find(kind, name)
        blame = f"{kind} {name!r} ({entry.provider}, hook {hookspecs.HOOKS[kind]}): {entry.target}"
        module, _, attribute = entry.target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginError(f"{blame} cannot be imported: {error}") from error
        if not (
            isinstance(found, type) and issubclass(found, Component) and getattr(found, "kind", None) == kind
        ):
            raise PluginError(f"{blame} is no {kind}: it must derive from muco.core.{kind.title()}")
        config = getattr(found, "Config", None)
        if not (isinstance(config, type) and issubclass(config, ComponentConfig)):
            raise PluginError(f"{blame} has no `Config` that derives from muco.core.ComponentConfig")
        missing = sorted(cast(frozenset[str], getattr(found, "__abstractmethods__", frozenset[str]())))
        if missing:
            raise PluginError(f"{blame} does not write {', '.join(missing)}, which its interface asks for")
        return found


def _declared(plugin: Any) -> list[str]:
    """Return the names of a plugin's hooks, misspelt ones too."""
    members = cast(dict[str, Any], vars(plugin))
    return [name for name, value in members.items() if hasattr(value, f"{hookspecs.PROJECT}_impl")]


def _misspelt(plugin: Any, provider: str) -> str | None:
    known = list(hookspecs.HOOKS.values())
    for name in _declared(plugin):
        if name not in known:
            near = did_you_mean(name, known)
            return f"plugin {plugin.__name__} ({provider}): no hook named {name!r}.{near}"
    return None


def _declarations(plugin: Any, hook: str, declare: Any, provider: str) -> dict[str, str]:
    """Return what a hook declares."""
    blame = f"plugin {plugin.__name__} ({provider}, hook {hook})"
    try:
        found = dict(declare())
    except Exception as error:
        raise PluginError(f"{blame} declares nothing that can be read: {error!r}") from error
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise PluginError(f'{blame} declares {found!r}; it must map names to "module:Class"')
    return found


@cache
def default_registry() -> Registry:
    """Return the registry of every installed package with an entry point in group `muco`.

    Raises:
        PluginError: a plugin package that cannot be used.
    """
    from importlib.metadata import entry_points

    registry = Registry()
    for point in sorted(entry_points(group=hookspecs.PROJECT), key=lambda point: point.name):
        dist = point.dist
        provider = f"{dist.name} {dist.version}" if dist else point.value
        try:
            plugin = point.load()
        except Exception as error:
            raise PluginError(
                f"plugin {point.value} ({provider}) cannot be imported: {error!r}. "
                f"Mend or uninstall it (Python {sys.version.split()[0]})."
            ) from error
        registry.add(plugin, provider=provider)
    return registry
