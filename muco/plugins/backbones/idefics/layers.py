"""The layers of Idefics3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from muco.core.layers import Block, Part
from muco.plugins.backbones.decoder.layers import (
    DecoderLayers,
    ImageLengths,
    connector_training,
    language_model,
    make_linears,
    picture_lengths,
    tower,
    vision_training,
)
from muco.plugins.backbones.idefics.processor import tile_grid

_MERGED = "image tokens"
"""Length: the tokens of a tile."""
_LONGEST_EDGE_TILES = 4
"""Sides of a tile to which published checkpoints resize the longer side of an image."""


def idefics_layers(config: Any, sizes: Mapping[str, Any]) -> DecoderLayers:
    """Return the layers of a model; see `Backbone.layers_of`."""
    vision, text, merge = sizes["vision_config"], sizes["text_config"], sizes["scale_factor"]
    side, checkpointed = vision["image_size"], config.gradient_checkpointing
    tile_tokens = (side // vision["patch_size"] // merge) ** 2
    linears = make_linears(
        (("proj", vision["hidden_size"] * merge**2, text["hidden_size"]),),
        connector_training(config),
        num_reading=1,
    )
    gradient = vision_training(config) != "nothing"
    parts = (
        tower(vision, config, num_used=vision["num_hidden_layers"], checkpointed=checkpointed),
        Part("projector", (Block(linears, _MERGED),), input_gradient=gradient),
        language_model(text, config, checkpointed=checkpointed),
    )
    is_random = config.random_init is not None
    edge = config.longest_edge_pixels or (2 if is_random else _LONGEST_EDGE_TILES) * side
    splits = not is_random if config.split_images is None else config.split_images

    def tiles(count: int) -> dict[str, Sequence[int]]:
        return {**picture_lengths(vision, count, class_tokens=0), _MERGED: [tile_tokens] * count}

    def image(width: int, height: int) -> ImageLengths:
        rows, columns = tile_grid(height, width, side=side, longest_edge=edge) if splits else (0, 0)
        count = rows * columns + 1
        # Around the tiles are two or three tokens of markup each.
        return ImageLengths(tiles(count), count * (tile_tokens + 2) + 1)

    def images_of(tensors: dict[str, Tensor]) -> Mapping[str, Sequence[int]]:
        return tiles(len(tensors["pixel_values"]))

    causal = config.attention_direction == "causal"
    return DecoderLayers(
        parts, hidden_dim=text["hidden_size"], causal=causal, image=image, images_of=images_of
    )
