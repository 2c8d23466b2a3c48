"""The public interfaces of components and the data types that pass between them.

Names are resolved on first use: importing one that needs no torch does not import torch.
"""

# pyright: reportUnusedImport=false

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muco.core.backbone import Backbone, Cost, Processor, Rendered
    from muco.core.component import KINDS, Component, ComponentConfig, Feature, Kind
    from muco.core.component_ref import ComponentRef
    from muco.core.dialogue import Context, Dialogue, DialoguePair, Message, Turn, TurnKey
    from muco.core.encoder import TurnEncoder
    from muco.core.errors import DataError, MucoError, PluginError, RecipeError
    from muco.core.exported import Exported, PooledState
    from muco.core.hookspecs import CONTRACT, hookimpl
    from muco.core.ids import stable_id
    from muco.core.image import EncodedImage
    from muco.core.loss import Candidates, Loss, LossTerms, check_sides, positive_pairs
    from muco.core.packer import Packer
    from muco.core.pooler import ExportedPooler, Pooler
    from muco.core.registry import Entry, Registry, default_registry
    from muco.core.sample import Content, Pair, Sample
    from muco.core.sampler import BatchPlan, Catalog, Sampler, SampleRef
    from muco.core.source import Source
    from muco.core.suite import Suite, Task
    from muco.core.turns import EncoderInputs, ImageFeatures, TurnEmbeddings, TurnIds, TurnSpans, TurnStates
    from muco.core.video import Video, Visual, stills

_NAMES = {
    "backbone": "Backbone Cost Processor Rendered",
    "component": "KINDS Component ComponentConfig Feature Kind",
    "component_ref": "ComponentRef",
    "dialogue": "Context Dialogue DialoguePair Message Turn TurnKey",
    "encoder": "TurnEncoder",
    "errors": "DataError MucoError PluginError RecipeError",
    "exported": "Exported PooledState",
    "hookspecs": "CONTRACT hookimpl",
    "ids": "stable_id",
    "image": "EncodedImage",
    "loss": "Candidates Loss LossTerms check_sides positive_pairs",
    "packer": "Packer",
    "pooler": "ExportedPooler Pooler",
    "registry": "Entry Registry default_registry",
    "sample": "Content Pair Sample",
    "sampler": "BatchPlan Catalog Sampler SampleRef",
    "source": "Source",
    "suite": "Suite Task",
    "turns": "EncoderInputs ImageFeatures TurnEmbeddings TurnIds TurnSpans TurnStates",
    "video": "Video Visual stills",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'muco.core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"muco.core.{_MODULES[name]}"), name)
