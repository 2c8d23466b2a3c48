"""The layers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from typing import Any

from torch import Tensor

from muco.core.layers import Block, Linear, Part
from muco.plugins.backbones.decoder.layers import (
    DecoderLayers,
    ImageLengths,
    language_model,
    make_linears,
    vision_training,
)

_PATCHES, _WINDOWS, _TOKENS = "patches", "windows", "image tokens"
"""Lengths: of slices of an image or video, of windows within them, of images as tokens."""


def qwen_vl_layers(config: Any, sizes: Mapping[str, Any]) -> DecoderLayers:
    """Return the layers of a model; see `Backbone.layers_of`."""
    vision, text = sizes["vision_config"], sizes["text_config"]
    checkpointed = config.gradient_checkpointing
    parts = (
        _vision_tower(sizes["model_type"], vision, config),
        _projector(sizes["model_type"], vision, config),
        language_model(text, config, checkpointed=checkpointed),
    )
    lengths = lru_cache(partial(_lengths, merge=vision["spatial_merge_size"], window=_window(vision)))

    def image(width: int, height: int) -> ImageLengths:
        rows, columns = _grid(width, height, vision, config)
        of = lengths(1, rows, columns)
        return ImageLengths(of, sum(of[_TOKENS]))

    def images_of(tensors: dict[str, Tensor]) -> Mapping[str, Sequence[int]]:
        images = [lengths(*grid) for grid in tensors["image_grid_thw"].tolist()]
        return {
            name: [length for image in images for length in image[name]]
            for name in (_PATCHES, _WINDOWS, _TOKENS)
        }

    causal = config.attention_direction == "causal"
    return DecoderLayers(
        parts, hidden_dim=text["hidden_size"], causal=causal, image=image, images_of=images_of
    )


def _vision_tower(family: str, vision: Mapping[str, Any], config: Any) -> Part:
    trained = vision_training(config)
    dim = vision["embed_dim"] if family == "qwen2_vl" else vision["hidden_size"]
    patch = vision.get("in_channels", 3) * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    if family == "qwen2_vl":
        mlp = int(dim * vision["mlp_ratio"])
        feed_forward = [("mlp.fc1", dim, mlp), ("mlp.fc2", mlp, dim)]
    elif family == "qwen2_5_vl":
        mlp = vision["intermediate_size"]
        feed_forward = [("mlp.gate_proj", dim, mlp), ("mlp.up_proj", dim, mlp), ("mlp.down_proj", mlp, dim)]
    else:
        mlp = vision["intermediate_size"]
        feed_forward = [("mlp.linear_fc1", dim, mlp), ("mlp.linear_fc2", mlp, dim)]
    sizes = [("attn.qkv", dim, 3 * dim), ("attn.proj", dim, dim), *feed_forward]
    linears = make_linears(sizes, trained, config.adapter, num_reading=1)
    # A convolution has no adapter.
    embed = Linear("patch_embed.proj", patch, dim, trained == "all", reads_input=True)
    whole = range(vision["depth"])
    if family == "qwen2_5_vl":
        whole = [index for index in whole if index in vision["fullatt_block_indexes"]]
    blocks = [
        Block(
            linears,
            _PATCHES,
            repeats,
            attention_dim=dim,
            attends_within=within,
            checkpointed=config.gradient_checkpointing,
        )
        for within, repeats in ((_WINDOWS, vision["depth"] - len(whole)), (_PATCHES, len(whole)))
        if repeats
    ]
    return Part(
        "vision tower", (Block((embed,), _PATCHES), *blocks), input_gradient=False, computes_images=True
    )


def _projector(family: str, vision: Mapping[str, Any], config: Any) -> Part:
    """Return the mergers, which are modules of the vision tower: one, and one a deepstack layer."""
    trained = vision_training(config)
    dim = vision["embed_dim"] if family == "qwen2_vl" else vision["hidden_size"]
    outputs = vision["hidden_size"] if family == "qwen2_vl" else vision["out_hidden_size"]
    merged = dim * vision["spatial_merge_size"] ** 2
    names = ("linear_fc1", "linear_fc2") if family == "qwen3_vl" else ("mlp.0", "mlp.2")
    sizes = ((names[0], merged, merged), (names[1], merged, outputs))
    linears = make_linears(sizes, trained, config.adapter, num_reading=1)
    repeats = 1 + len(vision.get("deepstack_visual_indexes") or ())
    return Part(
        "projector",
        (Block(linears, _TOKENS, repeats),),
        input_gradient=trained != "nothing",
        computes_images=True,
    )


def _grid(width: int, height: int, vision: Mapping[str, Any], config: Any) -> tuple[int, int]:
    """Return rows and columns of patches of an image of this size, as the processor makes them.

    The processor asks transformers, whose import alone takes seconds.
    """
    side = vision["patch_size"] * vision["spatial_merge_size"]
    if config.small_images == "square" and min(width, height) < side:
        width = height = 2 * side
    area, edges = width * height, (height, width)
    tokens = [round(edge / side) for edge in edges]
    if tokens[0] * tokens[1] * side**2 > config.max_pixels:
        scale = math.sqrt(area / config.max_pixels)
        tokens = [max(1, math.floor(edge / scale / side)) for edge in edges]
    elif tokens[0] * tokens[1] * side**2 < config.min_pixels:
        scale = math.sqrt(config.min_pixels / area)
        tokens = [math.ceil(edge * scale / side) for edge in edges]
    merge = vision["spatial_merge_size"]
    return tokens[0] * merge, tokens[1] * merge


def _window(vision: Mapping[str, Any]) -> int | None:
    """Return the tokens a side of a window; None without windows."""
    if "window_size" not in vision:
        return None
    return vision["window_size"] // vision["spatial_merge_size"] // vision["patch_size"]


def _lengths(
    slices: int, rows: int, columns: int, *, merge: int, window: int | None
) -> dict[str, tuple[int, ...]]:
    """Return the lengths of an image, or of a video's slices, with a grid of patches."""
    tokens = (rows // merge, columns // merge)
    windows: list[int] = []
    if window is not None:
        sides = ([min(window, side - start) for start in range(0, side, window)] for side in tokens)
        windows = [height * width * merge**2 for height, width in product(*sides)]
    return {
        _PATCHES: (rows * columns,) * slices,
        _WINDOWS: tuple(windows) * slices,
        _TOKENS: (slices * tokens[0] * tokens[1],),
    }
