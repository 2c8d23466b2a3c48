"""A small CLIP with random weights, its tokenizer trained on the data."""

from __future__ import annotations

from collections.abc import Iterable
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from muco.core.component import ComponentConfig
from muco.plugins.backbones.bpe_tokenizer import train_tokenizer

SPECIAL_TOKENS = ("<pad>", "<start_of_text>", "<end_of_text>")
_PAD, _START, _END = range(3)


class RandomInitSettings(ComponentConfig):
    """The size of a CLIP built from random weights."""

    embedding_dim: PositiveInt = 128
    """Size of both towers' output, and of the embedding if the pooler has no projection."""
    image_size_pixels: PositiveInt = 56
    """Images are resized to this many pixels a side."""
    patch_size_pixels: PositiveInt = 14
    """Side of a patch; divides `image_size_pixels`."""
    vision_dim: PositiveInt = 128
    """Hidden size of the image tower."""
    vision_layers: PositiveInt = 4
    """Layers of the image tower."""
    vision_heads: PositiveInt = 4
    """Attention heads of the image tower; divides `vision_dim`."""
    image_mean: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Mean of the data, subtracted from every channel; white is 1."""
    image_std: PositiveFloat = 0.25
    """Divides every channel after that."""
    text_dim: PositiveInt = 128
    """Hidden size of the text tower."""
    text_layers: PositiveInt = 4
    """Layers of the text tower."""
    text_heads: PositiveInt = 4
    """Attention heads of the text tower; divides `text_dim`."""
    context_length: Annotated[int, Field(ge=3)] = 64
    """Most tokens of a text, including its start and end."""
    vocab_size: PositiveInt = 1024
    """At most this many tokens are learned from the data."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> RandomInitSettings:
        for small, large in (
            ("vision_heads", "vision_dim"),
            ("text_heads", "text_dim"),
            ("patch_size_pixels", "image_size_pixels"),
        ):
            if getattr(self, large) % getattr(self, small):
                raise ValueError(
                    f"{large} {getattr(self, large)} must be a multiple of {small} {getattr(self, small)}"
                )
        return self


def scratch_tokenizer(settings: RandomInitSettings, texts: Iterable[str]) -> Any:
    """Train the tokenizer on the texts and return it as open_clip loads it."""
    from open_clip.tokenizer import HFTokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(texts, vocab_size=settings.vocab_size, special_tokens=SPECIAL_TOKENS)
    start, end = SPECIAL_TOKENS[_START], SPECIAL_TOKENS[_END]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, _START), (end, _END)]
    )
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return HFTokenizer(folder, context_length=settings.context_length)


def scratch_config(settings: RandomInitSettings, *, num_tokens: int) -> dict[str, Any]:
    """Return the `model_cfg` of these sizes for open_clip_config.json."""
    return {
        "embed_dim": settings.embedding_dim,
        "vision_cfg": {
            "image_size": settings.image_size_pixels,
            "patch_size": settings.patch_size_pixels,
            "width": settings.vision_dim,
            "layers": settings.vision_layers,
            "head_width": settings.vision_dim // settings.vision_heads,
            "pool_type": "avg",
        },
        "text_cfg": {
            "context_length": settings.context_length,
            "vocab_size": num_tokens,
            "hf_tokenizer_name": "scratch",
            "width": settings.text_dim,
            "layers": settings.text_layers,
            "heads": settings.text_heads,
            "pool_type": "eos",
            "pad_id": _PAD,
            "eos_id": _END,
        },
    }


def scratch_preprocess(settings: RandomInitSettings) -> dict[str, Any]:
    """Return the `preprocess_cfg` for open_clip_config.json."""
    return {
        "mean": [settings.image_mean] * 3,
        "std": [settings.image_std] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
