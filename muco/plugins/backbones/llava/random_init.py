"""A small LLaVA with random weights, its tokenizer trained on the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from muco.plugins.backbones.bpe_tokenizer import train_tokenizer
from muco.plugins.backbones.decoder.chat import EMB, MASK
from muco.plugins.backbones.decoder.random_init import DecoderSizes

Family = Literal["llava", "llava_next", "llava_onevision"]
Decoder = Literal["llama", "mistral", "qwen2"]

IMAGE, VIDEO = "<image>", "<video>"
SPECIAL_TOKENS = ("<|endoftext|>", "</s>", "<|im_start|>", "<|im_end|>", IMAGE, VIDEO, EMB, MASK)

_DECODERS: dict[Family, Decoder] = {"llava": "llama", "llava_next": "mistral", "llava_onevision": "qwen2"}


class RandomInitSettings(DecoderSizes):
    """The family and size of a LLaVA with random weights."""

    head_multiple = 2
    vision_head_multiple = 1

    family: Family = "llava_onevision"
    """llava: LLaVA-1.5, one picture per image. llava_next, llava_onevision: images are cut into tiles."""
    decoder: Decoder | None = None
    """The language model. null: llama for llava, mistral for llava_next, qwen2 for llava_onevision."""
    image_size_pixels: PositiveInt = 56
    """Side of a picture or tile."""
    patch_size_pixels: PositiveInt = 14
    """Side of a patch, which becomes one token; divides `image_size_pixels`."""

    @model_validator(mode="after")
    def _patches_fit(self) -> RandomInitSettings:
        if self.image_size_pixels % self.patch_size_pixels:
            raise ValueError(
                f"patch_size_pixels {self.patch_size_pixels} must divide "
                f"image_size_pixels {self.image_size_pixels}"
            )
        return self


def scratch_tokenizer(settings: RandomInitSettings, texts: Iterable[str]) -> Any:
    """Train the tokenizer with the special tokens of the families' chat templates."""
    return train_tokenizer(texts, vocab_size=settings.vocab_size, special_tokens=SPECIAL_TOKENS)


def scratch_config(settings: RandomInitSettings, tokenizer: Any, *, max_tiles: int) -> Any:
    """Return the family's configuration for these sizes, this tokenizer and grids of at most `max_tiles`."""
    from transformers import AutoConfig

    image_id, video_id = tokenizer.convert_tokens_to_ids([IMAGE, VIDEO])
    decoder = settings.decoder or _DECODERS[settings.family]
    sliding = {"sliding_window": None} if decoder == "mistral" else {}
    text = settings.text_config(decoder, tokenizer, eos_token="</s>", **sliding)
    siglip = settings.family == "llava_onevision"
    extra: dict[str, Any] = {}
    if settings.family != "llava":
        side, steps = settings.image_size_pixels, range(1, max_tiles + 1)
        grids = [[rows * side, columns * side] for rows in steps for columns in steps]
        extra["image_grid_pinpoints"] = [grid for grid in grids if grid[0] * grid[1] <= max_tiles * side**2]
    if siglip:
        extra |= {"video_token_index": video_id, "vision_aspect_ratio": f"anyres_max_{max_tiles}"}
    vision = AutoConfig.for_model(
        "siglip_vision_model" if siglip else "clip_vision_model",
        **settings.tower_config(),
        image_size=settings.image_size_pixels,
        patch_size=settings.patch_size_pixels,
        **({"vision_use_head": False} if siglip else {}),
    )
    return AutoConfig.for_model(
        settings.family,
        text_config=text,
        vision_config=vision,
        image_token_index=image_id,
        vision_feature_layer=-1 if siglip else -2,
        **extra,
    )


def scratch_image_settings(settings: RandomInitSettings) -> dict[str, Any]:
    """Return the settings of the family's image processor, which resizes whole images to the tower's size."""
    side = settings.image_size_pixels
    common: dict[str, Any] = {
        **settings.colors(),
        "size": {"height": side, "width": side},
        "do_center_crop": False,
    }
    if settings.family == "llava":
        return {**common, "do_pad": True}
    return {**common, "crop_size": {"height": side, "width": side}}
