"""The Qwen-VL backbone: pretrained or from scratch, causal or isolated turns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, get_args

import torch
from pydantic import PositiveInt, model_validator
from torch import nn

from muco.core.component import Feature
from muco.core.errors import MucoError
from muco.core.turns import EncoderInputs, ImageFeatures, TurnStates
from muco.plugins._shared.attention import contexts_of
from muco.plugins._shared.chat import TemplateName
from muco.plugins._shared.checkpoint import Dtype, add_tokens, dtype_of, load_model
from muco.plugins._shared.decoder import DecoderBackbone, DecoderSettings, place_features
from muco.plugins.backbones.qwen_vl.processor import QwenVLProcessor
from muco.plugins.backbones.qwen_vl.scratch import (
    Family,
    ScratchSettings,
    scratch_config,
    scratch_tokenizer,
)


class QwenVL(DecoderBackbone):
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL without its language-model head.

    References:
        Wang et al. 2024, arXiv:2409.12191: Qwen2-VL, M-RoPE.
        Bai et al. 2025, arXiv:2502.13923: Qwen2.5-VL, attention in windows of the vision tower.
        Bai et al. 2025, arXiv:2511.21631: Qwen3-VL, interleaved M-RoPE, features of inner vision layers.
    """

    class Config(DecoderSettings):
        pretrained: str | None = None
        """Folder or hub name of a checkpoint in the transformers layout."""
        scratch: ScratchSettings | None = None
        """Random weights of this size instead, and a tokenizer trained on the training texts."""
        template: TemplateName = "chatml"
        """chatml: Qwen's roles. chatml_public: with the defect of the public MuCo code, an `<|im_end|>` that
        a reconstruction turn lacks. bare: content and embedding token alone, for models from scratch."""
        min_pixels: PositiveInt = 256 * 28 * 28
        """Smaller images are enlarged to this area."""
        max_pixels: PositiveInt = 1280 * 28 * 28
        """Larger images are reduced to this area."""

        @model_validator(mode="after")
        def _one_origin(self) -> QwenVL.Config:
            if (self.pretrained is None) == (self.scratch is None):
                raise ValueError("give either `pretrained` or `scratch`, not both or neither")
            if self.min_pixels > self.max_pixels:
                raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
            return self

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        return contexts_of(config.direction).union({"image_targets"})

    @classmethod
    def build(cls, config: Config, *, texts: Iterable[str]) -> Self:
        from transformers import AutoModel, AutoTokenizer

        if config.scratch is None:
            assert config.pretrained is not None
            model = _load(config.pretrained, config.dtype)
            tokenizer = AutoTokenizer.from_pretrained(config.pretrained)
            add_tokens(model, tokenizer)
            backbone = cls._of(model, tokenizer, config, place=config.pretrained)
            return backbone.set_up(config, start=config.pretrained)
        tokenizer = scratch_tokenizer(config.scratch, texts)
        # Converted afterwards, the frequencies of positions would be rounded too.
        model = AutoModel.from_config(scratch_config(config.scratch, tokenizer), dtype=dtype_of(config.dtype))
        return cls._of(model, tokenizer, config, place="").set_up(config)

    @classmethod
    def load(cls, config: Config, folder: Path) -> Self:
        from transformers import AutoTokenizer

        model = _load(str(folder), config.dtype)
        backbone = cls._of(model, AutoTokenizer.from_pretrained(folder), config, place=folder).set_up(config)
        backbone.read_adapter(folder)
        return backbone

    @classmethod
    def _of(cls, model: Any, tokenizer: Any, config: Config, *, place: str | Path) -> Self:
        """Return the backbone; `place` holds the checkpoint's image processor."""
        images = _image_processor(config, model, place)
        processor = QwenVLProcessor(
            tokenizer, images, config.template, padded=config.rows == "padded", direction=config.direction
        )
        return cls(model, processor, config)

    def encode(self, inputs: EncoderInputs, images: ImageFeatures | None = None) -> TurnStates:
        tensors = inputs.tensors
        embeds_RLH = self.embed(tensors["input_ids"])
        features = images or self.encode_images(inputs)
        deep: dict[str, Any] = {}
        if features is not None:
            first, *others = features.tensors
            embeds_RLH = place_features(embeds_RLH, tensors["image_index"], first)
            if others:
                is_image = tensors["input_ids"] == self.processor.image_id
                deep = {"visual_pos_masks": is_image, "deepstack_visual_embeds": others}
        hidden_RLH = self.model.language_model(
            inputs_embeds=embeds_RLH,
            position_ids=tensors["position_ids"],
            use_cache=False,
            **self.attention(tensors, embeds_RLH.dtype),
            **deep,
        ).last_hidden_state
        return TurnStates(hidden=hidden_RLH.flatten(0, 1), places=inputs.places, ids=inputs.ids)

    def encode_images(self, inputs: EncoderInputs) -> ImageFeatures | None:
        if "pixel_values" not in inputs.tensors:
            return None
        found = self.model.get_image_features(
            self.processor.colors(inputs.tensors["pixel_values"]), inputs.tensors["image_grid_thw"]
        )
        # Qwen3-VL adds the features of some inner layers to hidden states of its decoder's first layers.
        parts = (found.pooler_output, *getattr(found, "deepstack_features", ()))
        return ImageFeatures(tensors=tuple(torch.cat(tuple(part)) for part in parts))

    @property
    def vision(self) -> nn.Module:
        return self.model.visual


def _load(name: str, dtype: Dtype) -> Any:
    return load_model(name, dtype, backbone="qwen_vl", families=get_args(Family))


def _image_processor(config: QwenVL.Config, model: Any, place: str | Path) -> Any:
    """Return the processor: colours as the checkpoint or `scratch` has them, sizes as the recipe has them."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = model.config.vision_config
    settings: dict[str, Any] = {
        "size": {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    if config.scratch is not None:
        colors = {"image_mean": [config.scratch.image_mean] * 3, "image_std": [config.scratch.image_std] * 3}
        return Qwen2VLImageProcessorPil(**colors, **settings)
    try:
        return Qwen2VLImageProcessorPil.from_pretrained(place, **settings)
    except OSError as error:
        raise MucoError(f"backbone.pretrained: {place} has no preprocessor_config.json: {error}") from error
