"""A small Qwen-VL with random weights, and its tokenizer trained on the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import PositiveInt

from muco.plugins.backbones.bpe_tokenizer import train_tokenizer
from muco.plugins.backbones.decoder.chat import EMB, IMAGE_PAD, MASK, VIDEO_PAD, VISION_END, VISION_START
from muco.plugins.backbones.decoder.random_init import DecoderSizes

Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
"""Values of `model_type` in transformers."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    VISION_START,
    VISION_END,
    IMAGE_PAD,
    VIDEO_PAD,
    EMB,
    MASK,
)


_ROPE_THETA = 4.0
"""With the 1,000,000 of Qwen2-VL, and its high frequencies for time, the rotations for height and width
hardly differ within a picture of a few tokens: a small model would not learn positions."""


class RandomInitSettings(DecoderSizes):
    """The size of a Qwen-VL with random weights."""

    head_multiple = 8
    vision_head_multiple = 4

    family: Family = "qwen2_vl"
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL."""
    patch_size_pixels: PositiveInt = 14
    """Side of a patch."""
    merge_size: PositiveInt = 2
    """Patches per side that become one token."""


def scratch_tokenizer(settings: RandomInitSettings, texts: Iterable[str]) -> Any:
    """Train the tokenizer; its special tokens have the names of Qwen2-VL."""
    return train_tokenizer(texts, vocab_size=settings.vocab_size, special_tokens=SPECIAL_TOKENS)


def scratch_config(settings: RandomInitSettings, tokenizer: Any) -> Any:
    """Return the family's transformers configuration of that size, for that tokenizer."""
    from transformers import AutoConfig

    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
    # The default of 0.02 is for models of thousands of dimensions. In a small model it leaves every layer's
    # output near zero, and training starts slowly.
    std = settings.hidden_dim**-0.5
    return AutoConfig.for_model(
        settings.family,
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": settings.hidden_dim,
            "intermediate_size": settings.mlp_dim,
            "num_hidden_layers": settings.num_layers,
            "num_attention_heads": settings.num_heads,
            "num_key_value_heads": settings.num_kv_heads,
            "max_position_embeddings": 4096,
            "initializer_range": std,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            **_rotation(settings),
        },
        vision_config={
            "depth": settings.vision_layers,
            "initializer_range": std,
            "num_heads": settings.vision_heads,
            "patch_size": settings.patch_size_pixels,
            "spatial_merge_size": settings.merge_size,
            **_vision(settings),
        },
        initializer_range=std,
        image_token_id=ids[IMAGE_PAD],
        video_token_id=ids[VIDEO_PAD],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
    )


def _rotation(settings: RandomInitSettings) -> dict[str, Any]:
    """Return the settings of RoPE; the three axes share the frequencies."""
    head_dim = settings.hidden_dim // settings.num_heads
    half = head_dim // 2
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": _ROPE_THETA}
    if settings.family != "qwen3_vl":
        return {"rope_parameters": {**rope, "mrope_section": [0, half // 2, half - half // 2]}}
    # Interleaved: height and width each have every third frequency.
    third = half // 3
    rope |= {"mrope_section": [half - 2 * third, third, third], "mrope_interleaved": True}
    return {"rope_parameters": rope, "head_dim": head_dim}


def _vision(settings: RandomInitSettings) -> dict[str, Any]:
    """Return the settings of the vision tower whose names differ between families."""
    dim, layers = settings.vision_dim, settings.vision_layers
    if settings.family == "qwen2_vl":
        return {"embed_dim": dim, "hidden_size": settings.hidden_dim}
    sizes = {"hidden_size": dim, "out_hidden_size": settings.hidden_dim, "intermediate_size": 4 * dim}
    if settings.family == "qwen2_5_vl":
        # Windows of four tokens per side, as published; every fourth layer sees the whole image.
        window = 4 * settings.patch_size_pixels * settings.merge_size
        whole = sorted({*range(3, layers, 4), layers - 1})
        return {**sizes, "window_size": window, "fullatt_block_indexes": whole}
    # Three evenly spaced layers, as in the published models; each needs a decoder layer.
    deepstack = sorted({layers * part // 4 for part in (1, 2, 3)})[: settings.num_layers]
    return {**sizes, "deepstack_visual_indexes": deepstack}
