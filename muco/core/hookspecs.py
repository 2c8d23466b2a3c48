"""The seven hooks of a plugin package, one for each kind; entry-point group `muco`.

A hook takes nothing and returns a mapping of recipe names to "module:Class", as text, so listing components
imports none. The plugin module also states the version of the interfaces that it was written for:
`muco_contract = 2`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

hookimpl = pluggy.HookimplMarker(PROJECT)


def _hook(kind: str) -> Callable[[], Mapping[str, str]]:
    def declare() -> Mapping[str, str]:
        raise NotImplementedError

    declare.__doc__ = f'Return recipe name -> "module:Class" of a `muco.core.{kind}`, imported on use.'
    return pluggy.HookspecMarker(PROJECT)(declare)


muco_sources = _hook("Source")
muco_samplers = _hook("Sampler")
muco_packers = _hook("Packer")
muco_backbones = _hook("Backbone")
muco_poolers = _hook("Pooler")
muco_losses = _hook("Loss")
muco_suites = _hook("Suite")

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
