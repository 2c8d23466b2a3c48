"""A small Idefics3 with random weights, and its tokenizer trained on the data."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt, model_validator

from muco.plugins.backbones.decoder.chat import EMB, MASK
from muco.plugins.backbones.decoder.random_init import DecoderSizes
from muco.plugins.backbones.idefics.processor import SPECIAL_TOKENS

TOKENS = ("<|endoftext|>", *SPECIAL_TOKENS, EMB, MASK)


class RandomInitSettings(DecoderSizes):
    """The size of an Idefics3 built from random weights."""

    head_multiple = 2
    vision_head_multiple = 1

    image_size_pixels: PositiveInt = 56
    """Side of a tile, and of the whole image."""
    patch_size_pixels: PositiveInt = 14
    """Side of a patch."""
    merge_size: PositiveInt = 2
    """Patches a side that become one token."""

    @model_validator(mode="after")
    def _patches_fit(self) -> RandomInitSettings:
        if self.image_size_pixels % (self.patch_size_pixels * self.merge_size):
            raise ValueError(
                f"image_size_pixels {self.image_size_pixels} must be a multiple of patch_size_pixels "
                f"{self.patch_size_pixels} x merge_size {self.merge_size}"
            )
        return self


def random_config(settings: RandomInitSettings, tokenizer: Any) -> Any:
    """Return the configuration of transformers of that size, for that tokenizer."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "idefics3",
        text_config=settings.text_config("llama", tokenizer, eos_token="<end_of_utterance>"),
        vision_config={
            **settings.tower_config(),
            "image_size": settings.image_size_pixels,
            "patch_size": settings.patch_size_pixels,
        },
        scale_factor=settings.merge_size,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
