"""The registry: the installed components, who provides them, and their classes."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import pluggy
from pydantic.errors import PydanticUndefinedAnnotation

from muco.core import hookspecs
from muco.core.component import KINDS, Component, ComponentConfig, Kind
from muco.core.errors import PluginError, did_you_mean
from muco.core.ids import check_name


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
    """Components by kind and name. Hooks declare them; a class is imported on first use."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._entries: dict[tuple[Kind, str], Entry] = {}

    def add(self, plugin: Any, *, provider: str) -> None:
        """Add the components that one plugin module declares.

        Raise PluginError for a misspelt hook, another contract version, a name that is taken, or a hook
        that fails or does not return names and targets.
        """
        if getattr(plugin, "muco_contract", None) != hookspecs.CONTRACT:
            raise PluginError(_other_contract(plugin, provider))
        try:
            self._manager.register(plugin)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            message = _misspelt_hook(plugin) or error
            raise PluginError(f"plugin {plugin.__name__} ({provider}): {message}") from None
        for kind, hook in hookspecs.HOOKS.items():
            if hasattr(plugin, hook):
                for name, target in _declarations(plugin, hook, provider).items():
                    self._declare(Entry(cast(Kind, kind), name, target, provider))

    def _declare(self, entry: Entry) -> None:
        try:
            check_name(entry.name)
        except ValueError as error:
            raise PluginError(
                f"{entry.kind} {entry.name!r} ({entry.provider}, hook {hookspecs.HOOKS[entry.kind]}): {error}"
            ) from None
        other = self._entries.setdefault((entry.kind, entry.name), entry)
        if other is not entry:
            raise PluginError(
                f"two {entry.kind} components are named {entry.name!r}: {other.target} ({other.provider}) "
                f"and {entry.target} ({entry.provider}), hook {hookspecs.HOOKS[entry.kind]}. "
                "Rename one, or uninstall one of the packages."
            )

    def __iter__(self) -> Iterator[Entry]:
        """Yield the components by kind, then by name."""
        for kind in KINDS:
            yield from self.entries(kind)

    def entries(self, kind: Kind) -> list[Entry]:
        """Return the components of one kind, sorted by name."""
        return [self._entries[key] for key in sorted(self._entries) if key[0] == kind]

    def find(self, kind: Kind, name: str) -> Entry:
        """Return the declaration; raise LookupError, listing the names of the kind, if there is none."""
        if (kind, name) in self._entries:
            return self._entries[kind, name]
        entries = self.entries(kind)
        near = did_you_mean(name, [entry.name for entry in entries])
        registered = ", ".join(f"{entry.name} ({entry.provider})" for entry in entries) or "none"
        raise LookupError(f"no {kind} named {name!r}.{near}\nRegistered: {registered}")

    def component(self, kind: Kind, name: str) -> type[Component]:
        """Import and return the class; raise LookupError if there is no such name.

        Raise PluginError unless it is a class of that kind with a `Config` and every abstract method.
        """
        entry = self.find(kind, name)
        blame = f"{kind} {name!r} ({entry.provider}, hook {hookspecs.HOOKS[kind]}): {entry.target}"
        module, _, attribute = entry.target.partition(":")
        try:
            with _no_collection():
                cls = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginError(f"{blame} cannot be imported: {error}") from error
        if not (isinstance(cls, type) and issubclass(cls, Component) and getattr(cls, "kind", None) == kind):
            raise PluginError(f"{blame} is not a {kind}: it must derive from muco.core.{kind.title()}")
        config = getattr(cls, "Config", None)
        if not (isinstance(config, type) and issubclass(config, ComponentConfig)):
            raise PluginError(f"{blame} has no `Config` that derives from muco.core.ComponentConfig")
        try:
            config.model_rebuild()
        except PydanticUndefinedAnnotation as error:
            raise PluginError(
                f"{blame} has a `Config` with a type that is not defined: {error.message}"
            ) from None
        missing = sorted(cast(frozenset[str], getattr(cls, "__abstractmethods__", frozenset[str]())))
        if missing:
            raise PluginError(f"{blame} does not implement {', '.join(missing)}; the interface requires it")
        return cls


@contextmanager
def _no_collection() -> Generator[None]:
    """Pause garbage collection: torch makes a million objects that stay, and each pass would visit them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _hooks_of(plugin: Any) -> list[str]:
    """Return the names of a plugin's hooks, misspelt ones too."""
    members = cast(dict[str, Any], vars(plugin))
    return [name for name, value in members.items() if hasattr(value, f"{hookspecs.PROJECT}_impl")]


def _other_contract(plugin: Any, provider: str) -> str:
    """Return what is wrong with a plugin that does not declare our contract, and what to change."""
    contract, ours, hooks = getattr(plugin, "muco_contract", None), hookspecs.CONTRACT, _hooks_of(plugin)
    stated = "declares no `muco_contract`" if contract is None else f"is built for contract {contract}"
    message = (
        f"plugin {plugin.__name__} ({provider}; hooks: {', '.join(hooks) or 'none'}) {stated}; this muco "
        f"needs contract {ours}. "
    )
    if not (isinstance(contract, int) and contract in hookspecs.CHANGES):
        return message + "Install a release of the plugin for this muco."
    changes = [f"{hook}: {text}" for hook, text in hookspecs.CHANGES[contract].items() if hook in hooks]
    if not changes:
        return message + f"Set `muco_contract = {ours}` in it; its kinds of component did not change."
    steps = "\n".join(f"  {change}" for change in changes)
    return f"{message}Change its code, then set `muco_contract = {ours}`:\n{steps}"


def _misspelt_hook(plugin: Any) -> str | None:
    known = list(hookspecs.HOOKS.values())
    unknown = [name for name in _hooks_of(plugin) if name not in known]
    return f"no hook named {unknown[0]!r}.{did_you_mean(unknown[0], known)}" if unknown else None


def _declarations(plugin: Any, hook: str, provider: str) -> dict[str, str]:
    """Call a hook and return the targets that it declares, by name."""
    blame = f"plugin {plugin.__name__} ({provider}, hook {hook})"
    try:
        declared = dict(getattr(plugin, hook)())
    except Exception as error:
        raise PluginError(f"{blame} declares no components: {error!r}") from error
    if not all(isinstance(text, str) for pair in declared.items() for text in pair):
        raise PluginError(f'{blame} declares {declared!r}; it must map names to "module:Class"')
    return declared


@cache
def default_registry() -> Registry:
    """Return the registry of all installed packages that have an entry point in the group `muco`."""
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
                f"Fix or uninstall the package (Python {sys.version.split()[0]})."
            ) from error
        registry.add(plugin, provider=provider)
    return registry
