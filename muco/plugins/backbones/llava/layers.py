"""The layers of LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
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
from muco.plugins.backbones.llava.tiling import Tiling, limited_grids

_PROJECTED = "projected"
"""Length: the features of a picture that the projector reads."""


def llava_layers(config: Any, sizes: Mapping[str, Any]) -> DecoderLayers | None:
    """Return the layers of a model; see `Backbone.layers_of`."""
    vision, text, chosen = sizes["vision_config"], sizes["text_config"], sizes["vision_feature_layer"]
    if vision["model_type"] not in ("clip_vision_model", "siglip_vision_model"):
        return None
    if vision["model_type"] == "siglip_vision_model" and vision.get("vision_use_head", True):
        return None  # the head, which transformers computes for nothing, is not described here
    model: Any = json.loads(json.dumps(sizes), object_hook=lambda values: SimpleNamespace(**values))
    if sizes["model_type"] != "llava":
        model.image_grid_pinpoints = limited_grids(model, config.max_tiles)
    tiling = Tiling.of(model)
    class_tokens = int(vision["model_type"] == "clip_vision_model")
    layers = [chosen] if isinstance(chosen, int) else chosen
    depth, checkpointed = vision["num_hidden_layers"], config.gradient_checkpointing
    # States are the embeddings and the output of each layer; -1 is the last one's.
    num_used = max(layer if layer >= 0 else depth + 1 + layer for layer in layers)
    dim, hidden = vision["hidden_size"] * len(layers), text["hidden_size"]
    linears = make_linears(
        (("linear_1", dim, hidden), ("linear_2", hidden, hidden)), connector_training(config), num_reading=1
    )
    gradient = vision_training(config) != "nothing"
    parts = (
        tower(vision, config, num_used=num_used, checkpointed=checkpointed),
        Part("projector", (Block(linears, _PROJECTED),), input_gradient=gradient),
        language_model(text, config, checkpointed=checkpointed),
    )

    def pictures(count: int) -> dict[str, Sequence[int]]:
        of = picture_lengths(vision, count, class_tokens=class_tokens)
        return {**of, _PROJECTED: [tiling.tile_tokens] * count}

    def image(width: int, height: int) -> ImageLengths:
        count = tiling.num_tiles(height, width, is_only=True)
        return ImageLengths(pictures(count), tiling.num_tokens(height, width, count))

    def images_of(tensors: dict[str, Tensor]) -> Mapping[str, Sequence[int]]:
        return pictures(len(tensors["pixel_values"]))

    causal = config.attention_direction == "causal"
    return DecoderLayers(
        parts, hidden_dim=text["hidden_size"], causal=causal, image=image, images_of=images_of
    )
