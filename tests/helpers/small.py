"""Small real things: a Qwen-VL of two random layers, pictures, a quick recipe."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageDraw

from muco.core import EncodedImage

SMALL: dict[str, Any] = {
    "template": "bare",
    "min_pixels": 56 * 56,
    "max_pixels": 84 * 84,
    "random_init": {
        "hidden_dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "mlp_dim": 48,
        "vision_dim": 32,
        "vision_layers": 2,
        "vision_heads": 2,
        "vocab_size": 400,
    },
}
"""Settings of the smallest backbone that is still a Qwen2-VL."""

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def small(family: str, **options: Any) -> dict[str, Any]:
    """Return the settings of the smallest backbone of a family, with room for images of several windows."""
    patch = {"patch_size_pixels": 16} if family == "qwen3_vl" else {}
    random_init = {**SMALL["random_init"], "family": family, **patch}
    return {**SMALL, "max_pixels": 200 * 200, "random_init": random_init, **options}


SMALL_CLIP: dict[str, Any] = {
    "random_init": {
        "embedding_dim": 32,
        "vision_dim": 32,
        "vision_layers": 2,
        "vision_heads": 2,
        "text_dim": 32,
        "text_layers": 2,
        "text_heads": 2,
        "context_length": 48,
        "vocab_size": 400,
    }
}
"""Settings of the smallest two towers."""

LLAVA_SIZES = {
    "hidden_dim": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "mlp_dim": 48,
    "vision_dim": 32,
    "vision_layers": 3,
    "vision_heads": 2,
    "image_size_pixels": 56,
    "vocab_size": 400,
}
"""Sizes of the smallest model that is still a LLaVA."""
LLAVA_FAMILIES = ("llava", "llava_next", "llava_onevision")


def small_llava(family: str, **options: object) -> dict[str, Any]:
    """Return the settings of the smallest backbone of a LLaVA family."""
    decoder = options.pop("decoder", None)
    random_init = {**LLAVA_SIZES, "family": family, "decoder": decoder}
    return {"max_tiles": 3, "random_init": random_init, **options}


def small_idefics(**options: object) -> dict[str, Any]:
    """Return the settings of the smallest Idefics3."""
    return {"random_init": LLAVA_SIZES, **options}


TEXTS = ["what is the colour of the circle?", "a red circle at the top left", "where is it?"] * 4

QUICK = [
    "data.turns.source.num_samples=62",
    "data.pairs.source.num_samples=22",
    "sampler.run_length=4",
    "train.num_steps=12",
    "train.global_batch_size=8",
    "train.checkpoint_every=4",
    "train.chunk_tokens=1024",
    "train.log_every=1",
    "train.num_workers=0",
    "evaluate.suites.0.num_queries=8",
    *(f"backbone.random_init.{key}={value}" for key, value in SMALL["random_init"].items()),
]
"""Overrides that make the quickstart a matter of seconds: 12 steps over an epoch's edge."""


def picture(colour: str, size: tuple[int, int]) -> EncodedImage:
    """Return a PNG with a coloured disc."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((1, 1, size[0] // 2, size[1] // 2), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return EncodedImage(buffer.getvalue())
