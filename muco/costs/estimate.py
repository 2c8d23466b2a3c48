"""The FLOPs of a recipe's step from its settings, without weights, data or a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from muco.config.recipe import Recipe
from muco.core.backbone import Backbone
from muco.core.component_ref import ComponentRef
from muco.core.errors import MucoError
from muco.core.layers import ModelLayers, join_lengths, repeat_lengths
from muco.core.packer import Packer
from muco.core.pooler import Pooler
from muco.costs.assumptions import Assumptions, assumed_sides
from muco.costs.step import StepFlops, count_loss, count_step
from muco.costs.tables import public_model


@dataclass(frozen=True)
class KnownLayers:
    """The layers of a recipe's backbone, and where its sizes are from."""

    layers: ModelLayers
    source: str


@dataclass(frozen=True)
class Estimate:
    """The FLOPs of a step, and the batch that they are of."""

    step: StepFlops
    source: str
    """Where the sizes of the model are from."""
    num_queries: int
    num_targets: int
    query_tokens: int
    """Of all query dialogues, image tokens included."""
    target_tokens: int


def estimate(recipe: Recipe, assumed: Assumptions, *, sizes_of: ComponentRef[Any] | None = None) -> Estimate:
    """Return the FLOPs of a step of a recipe for a batch that is as assumed.

    Args:
        recipe: its settings are counted.
        assumed: the batch.
        sizes_of: a backbone of the same sizes, where the recipe's model does not exist yet.

    Raises:
        MucoError: the sizes of the backbone, or its FLOPs, are not known; the message says what to do.
    """
    known = known_layers(recipe.backbone, sizes_of)
    packer: Packer = recipe.packer.make()
    sides = assumed_sides(packer, assumed)
    lengths = [repeat_lengths(known.layers.lengths_for(side.dialogues), assumed.images) for side in sides]
    tokens = [sum(each.of.get("tokens", ())) for each in lengths]
    queries, targets = (side.num_turns * assumed.images for side in sides)
    loss = recipe.loss.make()
    pooler = cast("type[Pooler]", recipe.pooler.cls)
    dim = pooler.embedding_dim_of(recipe.pooler.config, known.layers.hidden_dim)
    chunk = recipe.train.chunk_tokens
    calls = sum(-(-each // chunk) for each in tokens) if isinstance(chunk, int) else len(tokens)
    step = count_step(
        known.layers.parts,
        join_lengths(lengths),
        calls=calls,
        grad_cache=recipe.train.grad_cache,
        loss=count_loss(queries, targets, dim or known.layers.hidden_dim, symmetric=loss.symmetric),
    )
    return Estimate(step, known.source, queries, targets, *tokens)


def known_layers(backbone: ComponentRef[Any], sizes_of: ComponentRef[Any] | None = None) -> KnownLayers:
    """Return the layers of a backbone.

    The sizes are those of `sizes_of`, by default its own: from `random_init`, a local folder, or the table
    of public models.

    Raises:
        MucoError: none of these tells its sizes, or the backbone does not tell its layers.
    """
    cls, config = cast("type[Backbone]", backbone.cls), backbone.config
    origin = (sizes_of or backbone).config
    pretrained = getattr(origin, "pretrained", None)
    sizes, source = cls.sizes_of(origin), pretrained or "backbone.random_init"
    public = None if pretrained is None else public_model(pretrained)
    if sizes is None and public is not None:
        sizes, source = public["sizes"], f"{pretrained}, {public['source']}"
    if sizes is None:
        raise MucoError(
            f"backbone.pretrained: the sizes of {pretrained} are not known here. Give a folder with its "
            "config.json, or a model of the table muco/costs/models.yaml by "
            "--set backbone.pretrained=Qwen/Qwen2-VL-2B-Instruct"
        )
    layers = cls.layers_of(config, sizes)
    if layers is None:
        raise MucoError(f"backbone {backbone.name}: it does not say what it computes with these settings")
    return KnownLayers(layers, source)
