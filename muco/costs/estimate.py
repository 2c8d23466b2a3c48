"""The FLOPs of a recipe's step from its settings, without weights, data or a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from muco.config.recipe import Recipe, TrainSettings
from muco.core.backbone import Backbone
from muco.core.component_ref import ComponentRef
from muco.core.errors import MucoError
from muco.core.layers import Lengths, ModelLayers, join_lengths, repeat_lengths
from muco.core.packer import Packer
from muco.core.pooler import Pooler
from muco.costs.assumptions import Assumptions, assumed_sides
from muco.costs.step import Chunks, StepFlops, count_loss, count_step
from muco.costs.tables import public_model
from muco.model.batching import held_chunks


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

    `sizes_of` is a backbone of the same sizes, where the recipe's model does not exist yet. Raise MucoError,
    which says what to do, if the sizes of the backbone, or its FLOPs, are not known.
    """
    known = known_layers(recipe.backbone, sizes_of)
    packer: Packer = recipe.packer.make()
    pooler: Pooler = recipe.pooler.make(hidden_dim=known.layers.hidden_dim)
    sides = assumed_sides(packer, assumed, pooler)
    of_image = [known.layers.lengths_for(side.dialogues) for side in sides]
    tokens, patches = (
        [assumed.images * sum(each.of.get(name, ())) for each in of_image] for name in ("tokens", "patches")
    )
    queries, targets = (side.num_turns * assumed.images for side in sides)
    loss = recipe.loss.make()
    chunks, twice = _count_chunks(recipe.train, list(map(max, tokens, patches)))
    num_twice = [assumed.images * again // max(every, 1) for again, every in zip(twice, chunks, strict=True)]
    step = count_step(
        known.layers.parts,
        Chunks(_of_images(of_image, [assumed.images] * len(sides)), sum(chunks)),
        loss=count_loss(queries, targets, pooler.embedding_dim, symmetric=loss.symmetric),
        twice=Chunks(_of_images(of_image, num_twice), sum(twice)),
    )
    return Estimate(step, known.source, queries, targets, *tokens)


def _count_chunks(settings: TrainSettings, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the number of chunks of each side in one process, and how many of them are encoded twice.

    `sizes` are the tokens of each side, or its patches if there are more. What is `auto` is not known before
    a run. With `chunk_tokens: auto` each side is one chunk, which is encoded twice; with `held_tokens: auto`
    only the largest chunk is encoded once.
    """
    limit = settings.chunk_tokens
    if not isinstance(limit, int):
        chunks = [1] * len(sizes)
        return chunks, chunks if settings.grad_cache else [0] * len(sizes)
    chunks = [-(-each // limit) for each in sizes]
    side_of = [side for side, number in enumerate(chunks) for _ in range(number)]
    held = held_chunks([sizes[side] // chunks[side] for side in side_of], settings.held_limit(limit) or 0)
    num_held = Counter(side_of[index] for index in held)
    twice = [number - num_held[side] for side, number in enumerate(chunks)]
    return chunks, twice if settings.grad_cache else [0] * len(sizes)


def _of_images(of_image: Sequence[Lengths], numbers: Sequence[int]) -> Lengths:
    """Return the lengths of so many images of each side, from those of one image."""
    return join_lengths(list(map(repeat_lengths, of_image, numbers)))


def known_layers(backbone: ComponentRef[Any], sizes_of: ComponentRef[Any] | None = None) -> KnownLayers:
    """Return the layers of a backbone.

    The sizes are those of `sizes_of`, by default its own: from `random_init`, a local folder, or the table of
    public models. Raise MucoError if none of these tells its sizes, or the backbone does not tell its layers.
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
