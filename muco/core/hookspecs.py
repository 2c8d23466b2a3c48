"""The seven hooks of a plugin package, one for each kind; entry-point group `muco`.

A hook returns names and paths of components as text, so listing them imports none. The plugin module also
states the version of the interfaces that it was written for: `muco_contract = 2`.
"""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

PROJECT = "muco"
CONTRACT = 2
"""Version of the interfaces. It is increased when a change of `muco.core` breaks existing components."""

CHANGES = {
    1: {
        "muco_backbones": (
            "`Processor.count` is gone: `Processor.render(dialogue)` returns a `muco.core.Rendered` with its "
            "`cost`, and `Processor.collate` takes a list of rendered dialogues. `Backbone.about` is now "
            "`startup_summary`. `TurnPlaces` is now `TurnSpans`, and `.places` is `.spans`."
        ),
        "muco_poolers": "`TurnPlaces` is now `TurnSpans`, and `.places` is `.spans`.",
    }
}
"""By older contract and hook: what a plugin must change before it can declare `CONTRACT`."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def muco_sources() -> Mapping[str, str]:
    """Declare sources: recipe name -> "module:Class" of a `muco.core.Source`, imported on use."""
    raise NotImplementedError


@hookspec
def muco_samplers() -> Mapping[str, str]:
    """Declare samplers: recipe name -> "module:Class" of a `muco.core.Sampler`, imported on use."""
    raise NotImplementedError


@hookspec
def muco_packers() -> Mapping[str, str]:
    """Declare packers: recipe name -> "module:Class" of a `muco.core.Packer`, imported on use."""
    raise NotImplementedError


@hookspec
def muco_backbones() -> Mapping[str, str]:
    """Declare backbones: recipe name -> "module:Class" of a `muco.core.Backbone`, imported on use."""
    raise NotImplementedError


@hookspec
def muco_poolers() -> Mapping[str, str]:
    """Declare poolers: recipe name -> "module:Class" of a `muco.core.Pooler`, imported on use."""
    raise NotImplementedError


@hookspec
def muco_losses() -> Mapping[str, str]:
    """Declare losses: recipe name -> "module:Class" of a `muco.core.Loss`, imported on use."""
    raise NotImplementedError


@hookspec
def muco_suites() -> Mapping[str, str]:
    """Declare suites: recipe name -> "module:Class" of a `muco.core.Suite`, imported on use."""
    raise NotImplementedError


HOOKS = {
    "source": "muco_sources",
    "sampler": "muco_samplers",
    "packer": "muco_packers",
    "backbone": "muco_backbones",
    "pooler": "muco_poolers",
    "loss": "muco_losses",
    "suite": "muco_suites",
}
"""Hook name by kind."""
