"""The Qwen-VL backbone, pretrained or with random weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import PositiveInt, model_validator

from muco.core.component import Feature
from muco.core.layers import ModelLayers
from muco.core.turns import EncoderInputs, ImageFeatures, TurnStates
from muco.plugins.backbones.checkpoint import load_image_processor
from muco.plugins.backbones.decoder.backbone import (
    DecoderBackbone,
    DecoderSettings,
    features_of_tokens,
    place_features,
)
from muco.plugins.backbones.decoder.chat import TemplateName
from muco.plugins.backbones.qwen_vl.layers import qwen_vl_layers
from muco.plugins.backbones.qwen_vl.patches import PatchEmbedding
from muco.plugins.backbones.qwen_vl.processor import QwenVLProcessor, SmallImages
from muco.plugins.backbones.qwen_vl.random_init import (
    Family,
    RandomInitSettings,
    scratch_config,
    scratch_tokenizer,
)
from muco.plugins.backbones.qwen_vl.video import Frames

_SMALL_PIXELS = 4 * 28 * 28
"""Four tokens of Qwen2-VL."""


class QwenVL(DecoderBackbone):
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL without its language-model head.

    References:
        Wang et al. 2024, arXiv:2409.12191: Qwen2-VL, M-RoPE.
        Bai et al. 2025, arXiv:2502.13923: Qwen2.5-VL, attention in windows of the vision tower.
        Bai et al. 2025, arXiv:2511.21631: Qwen3-VL, interleaved M-RoPE, features of inner vision layers.
    """

    class Config(DecoderSettings):
        random_init: RandomInitSettings | None = None
        """Random weights of this size, and a tokenizer trained on the training texts."""
        template: TemplateName = "chatml"
        """chatml: Qwen's roles. chatml_public: as in the public MuCo code, an `<|im_end|>` is missing in a
        reconstruction turn. bare: only the content and the embedding token, for random weights."""
        min_pixels: PositiveInt = 256 * 28 * 28
        """Smaller images are enlarged to this area. With `random_init`, the default is 4 tokens."""
        max_pixels: PositiveInt = 1280 * 28 * 28
        """Larger images are reduced to this area."""
        small_images: SmallImages = "square"
        """Images with a side below that of a token, which is 28 pixels in Qwen2-VL. square: first resize them
        to a square of 2 x 2 tokens, as the public MuCo and VLM2Vec code does. keep_ratio: do not."""
        max_frames: PositiveInt = 8
        """Limit on the frames of a video; if there are more, evenly spaced ones are used."""
        min_frame_pixels: PositiveInt = 128 * 28 * 28
        """Smaller frames of videos are enlarged to this area. With `random_init`, the default is 4 tokens."""
        max_frame_pixels: PositiveInt = 768 * 28 * 28
        """Larger frames of videos are reduced to this area."""

        @model_validator(mode="before")
        @classmethod
        def _small_images_stay_small(cls, values: Any) -> Any:
            """Fill in small limits for random weights, which know no size; published ones know theirs."""
            if not isinstance(values, Mapping) or values.get("random_init") is None:
                return values
            return {"min_pixels": _SMALL_PIXELS, "min_frame_pixels": _SMALL_PIXELS, **values}

        @model_validator(mode="after")
        def _pixels_in_order(self) -> QwenVL.Config:
            if self.min_pixels > self.max_pixels:
                raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
            if self.min_frame_pixels > self.max_frame_pixels:
                raise ValueError(
                    f"min_frame_pixels {self.min_frame_pixels} is above "
                    f"max_frame_pixels {self.max_frame_pixels}"
                )
            return self

    name = "qwen_vl"
    families = get_args(Family)
    vision_name = "visual"

    def __init__(self, model: Any, processor: QwenVLProcessor, config: Config) -> None:
        super().__init__(model, processor, config)
        from muco.plugins.backbones.qwen_vl.vision_attention import VisionAttention

        model.visual.patch_embed = PatchEmbedding(model.visual.patch_embed.proj)
        for block in model.visual.blocks:
            block.attn = VisionAttention(block.attn)

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        return super().offers(config).union({"video"})

    @classmethod
    def layers_of(cls, config: Any, sizes: Mapping[str, Any]) -> ModelLayers | None:
        return qwen_vl_layers(config, sizes)

    @classmethod
    def scratch_parts(cls, config: Config, texts: Iterable[str]) -> tuple[Any, Any]:
        assert config.random_init is not None
        tokenizer = scratch_tokenizer(config.random_init, texts)
        return scratch_config(config.random_init, tokenizer), tokenizer

    @classmethod
    def make_processor(cls, config: Config, model: Any, tokenizer: Any, name: str | Path) -> QwenVLProcessor:
        images = _image_processor(config, model, name)
        return QwenVLProcessor(
            tokenizer,
            images,
            config.template,
            _frames(config, model.config),
            small_images=config.small_images,
            rows=config,
        )

    def encode(self, inputs: EncoderInputs, images: ImageFeatures | None = None) -> TurnStates:
        tensors = inputs.tensors
        embeds_RLH = self.embed(tensors["input_ids"])
        features = images or self.encode_images(inputs)
        deep: dict[str, Any] = {}
        if features is not None:
            first, *others = features.tensors
            embeds_RLH = place_features(embeds_RLH, tensors, first)
            if others:
                deep_features = [features_of_tokens(tensors, each) for each in others]
                is_image = torch.zeros_like(tensors["input_ids"], dtype=torch.bool)
                is_image.view(-1)[tensors["image_index"]] = True
                deep = {"visual_pos_masks": is_image, "deepstack_visual_embeds": deep_features}
        return self.decode(inputs, embeds_RLH, **deep)

    def encode_images(self, inputs: EncoderInputs) -> ImageFeatures | None:
        if "pixel_values" not in inputs.tensors:
            return None
        # For the vision tower, an image is a video of one slice.
        output = self.model.get_image_features(
            self.processor.colors(inputs.tensors["pixel_values"]), inputs.tensors["image_grid_thw"]
        )
        # Qwen3-VL adds features of inner vision layers to the hidden states of its decoder's first layers.
        parts = (output.pooler_output, *getattr(output, "deepstack_features", ()))
        return ImageFeatures(tensors=tuple(torch.cat(tuple(part)) for part in parts))


def _frames(config: QwenVL.Config, model: Any) -> Frames:
    """Return how the family reads videos."""
    family = model.model_type
    return Frames(
        config.max_frames,
        config.min_frame_pixels,
        config.max_frame_pixels,
        positions_per_second=model.vision_config.tokens_per_second if family == "qwen2_5_vl" else None,
        writes_times=family == "qwen3_vl",
    )


def _image_processor(config: QwenVL.Config, model: Any, name: str | Path) -> Any:
    """Return the image processor: colours of the checkpoint or `random_init`, sizes of the recipe."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = model.config.vision_config
    settings: dict[str, Any] = {
        "size": {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    if config.random_init is not None:
        return Qwen2VLImageProcessorPil(**config.random_init.colors(), **settings)
    # A checkpoint's own `min_pixels` and `max_pixels` would overrule `size`.
    bounds = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    return load_image_processor(Qwen2VLImageProcessorPil, name, **settings, **bounds)
