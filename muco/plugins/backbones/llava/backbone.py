"""The LLaVA backbone: pretrained or from scratch, causal or isolated turns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from muco.core.component import Feature
from muco.core.errors import MucoError
from muco.core.turns import EncoderInputs, ImageFeatures, TurnStates
from muco.plugins.backbones.decoder.attention import has_sliding_windows
from muco.plugins.backbones.decoder.backbone import DecoderBackbone, DecoderSettings, place_features
from muco.plugins.backbones.decoder.chat_templates import TemplateName, find_template
from muco.plugins.backbones.llava.processor import LlavaProcessor
from muco.plugins.backbones.llava.random_init import (
    IMAGE,
    VIDEO,
    Family,
    RandomInitSettings,
    scratch_config,
    scratch_image_settings,
    scratch_tokenizer,
)
from muco.plugins.backbones.llava.tiling import Tiling

_SCRATCH_TILES = 2


class Llava(DecoderBackbone):
    """LLaVA-1.5, LLaVA-NeXT or LLaVA-OneVision without the language-model head.

    References:
        Liu et al. 2023, arXiv:2310.03744: LLaVA-1.5.
        Liu et al. 2024, llava-vl.github.io/blog/2024-01-30-llava-next: LLaVA-NeXT.
        Li et al. 2024, arXiv:2408.03326: LLaVA-OneVision.
    """

    class Config(DecoderSettings):
        random_init: RandomInitSettings | None = None
        """Random weights of this family and size instead, and a tokenizer trained on the training texts."""
        template: TemplateName = "auto"
        """vicuna, mistral, chatml: the roles of those language models. bare: content and embedding token
        alone, for models from scratch. auto: that of the checkpoint's language model."""
        max_tiles: PositiveInt | None = None
        """Leave out grids of more tiles; else all that the checkpoint has, and 2 from scratch."""
        max_frames: PositiveInt = 8
        """Of a video; of more, so many are taken, spread evenly. LLaVA-OneVision alone reads videos."""

    name = "llava"
    families = get_args(Family)
    vision_name = "vision_tower"
    known_tokens = (IMAGE, VIDEO)

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        # Of a checkpoint the settings do not say which family it is.
        is_without = config.random_init is not None and config.random_init.family != "llava_onevision"
        videos: set[Feature] = set() if is_without else {"video"}
        return super().offers(config).union(videos)

    @classmethod
    def scratch_parts(cls, config: Config, texts: Iterable[str]) -> tuple[Any, Any]:
        assert config.random_init is not None
        tokenizer = scratch_tokenizer(config.random_init, texts)
        return scratch_config(
            config.random_init, tokenizer, max_tiles=config.max_tiles or _SCRATCH_TILES
        ), tokenizer

    @classmethod
    def make_processor(cls, config: Config, model: Any, tokenizer: Any, place: str | Path) -> LlavaProcessor:
        _leave_out_grids(model.config, config.max_tiles)
        return LlavaProcessor(
            tokenizer,
            _image_processor(config, model.config, place),
            find_template(config.template, tokenizer, decoder=model.config.text_config.model_type),
            Tiling.of(model.config),
            image_id=model.config.image_token_id,
            video_id=getattr(model.config, "video_token_id", None),
            max_frames=config.max_frames,
            padded=config.rows == "padded",
            attention_direction=config.attention_direction,
        )

    def encode(self, inputs: EncoderInputs, images: ImageFeatures | None = None) -> TurnStates:
        tensors = inputs.tensors
        if "segment_ids" in tensors and has_sliding_windows(self.model.language_model.config):
            raise MucoError("backbone: this model has sliding windows, which isolated turns do not keep")
        embeds_RLH = self.embed(tensors["input_ids"])
        features = images or self.encode_images(inputs)
        if features is not None:
            features_TH = self._project(features.tensors[0], tensors)
            embeds_RLH = place_features(embeds_RLH, tensors["image_index"], features_TH)
        hidden_RLH = self.model.language_model(
            inputs_embeds=embeds_RLH,
            position_ids=tensors["position_ids"][0],
            use_cache=False,
            **self.attention(tensors, embeds_RLH.dtype),
        ).last_hidden_state
        return TurnStates(hidden=hidden_RLH.flatten(0, 1), spans=inputs.spans, ids=inputs.ids)

    def encode_images(self, inputs: EncoderInputs) -> ImageFeatures | None:
        """Return [pictures, patches, vision size], what the projector reads."""
        if "pixel_values" not in inputs.tensors:
            return None
        layers = self.model.config.vision_feature_layer
        states = self.model.vision_tower(
            self.processor.colors(inputs.tensors["pixel_values"]),
            output_hidden_states=layers,
            return_dict=True,
        ).hidden_states
        chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        features = torch.cat(chosen, dim=-1)
        # The first is that of the whole picture.
        first = self.model.config.vision_feature_select_strategy == "default"
        return ImageFeatures(tensors=(features[:, 1:] if first else features,))

    def frozen(self, config: DecoderSettings) -> Iterable[nn.Parameter]:
        # What lies between tower and language model is of the weights that adapters leave as they are.
        between = self._between() if config.adapter is not None and config.vision_is_frozen else []
        return [*super().frozen(config), *between]

    def _between(self) -> list[nn.Parameter]:
        """Return the weights of the projector, and of the token that ends a row of patches."""
        newline = [self.model.image_newline] if hasattr(self.model, "image_newline") else []
        return [*self.model.multi_modal_projector.parameters(), *newline]

    def _project(self, features: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Return the image tokens [T, H]: tiles put together, borders cut off, rows and videos ended."""
        projected = self.model.multi_modal_projector(features)
        if "image_tiles" not in tensors:
            return projected.flatten(0, 1)
        parts = projected.split(tensors["image_tiles"].tolist())
        sizes, are_videos = tensors["image_sizes"].tolist(), tensors["image_is_video"].tolist()
        images = [place for place, is_video in enumerate(are_videos) if not is_video]
        packed = iter(self._packed([parts[place] for place in images], [sizes[place] for place in images]))
        tokens = [
            self._pooled(part) if is_video else next(packed)
            for part, is_video in zip(parts, are_videos, strict=True)
        ]
        return torch.cat(tokens)

    def _pooled(self, frames: Tensor) -> Tensor:
        """Return a video's tokens [tokens, H] from the patches of its frames [frames, patches, H]."""
        pooled = self.model.apply_pooling(frames).flatten(0, 1)
        return torch.cat((pooled, self.model.image_newline[None].to(pooled.dtype)))

    def _packed(self, parts: list[Tensor], sizes: list[list[int]]) -> tuple[Tensor, ...]:
        """Return each image's tokens [tokens, H] from those of its pictures [tiles, patches, H].

        Args:
            parts: of each image.
            sizes: height and width of each image in pixels.
        """
        if not parts:
            return ()
        config = self.model.config
        told = (
            {"vision_aspect_ratio": config.vision_aspect_ratio}
            if config.model_type == "llava_onevision"
            else {"vision_feature_select_strategy": config.vision_feature_select_strategy}
        )
        tokens, _ = self.model.pack_image_features(
            parts, sizes, image_newline=self.model.image_newline, **told
        )
        return tuple(tokens)


def _leave_out_grids(config: Any, max_tiles: int | None) -> None:
    if max_tiles is None or config.model_type == "llava":
        return
    side = config.vision_config.image_size
    kept = [grid for grid in config.image_grid_pinpoints if grid[0] * grid[1] <= max_tiles * side**2]
    if not kept:
        raise MucoError(f"backbone.max_tiles: no grid of this model has at most {max_tiles} tiles")
    config.image_grid_pinpoints = kept


def _image_processor(config: Llava.Config, model: Any, place: str | Path) -> Any:
    """Return the family's image processor, as the checkpoint or `random_init` has it.

    Raises:
        MucoError: there is none, or its pictures are not those of the vision tower.
    """
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    cls = {
        "llava": LlavaImageProcessorPil,
        "llava_next": LlavaNextImageProcessorPil,
        "llava_onevision": LlavaOnevisionImageProcessorPil,
    }[model.model_type]
    grids = {} if model.model_type == "llava" else {"image_grid_pinpoints": model.image_grid_pinpoints}
    if config.random_init is not None:
        return cls(**scratch_image_settings(config.random_init), **grids)
    try:
        found = cls.from_pretrained(place, **grids)
    except OSError as error:
        raise MucoError(f"backbone.pretrained: {place} has no preprocessor_config.json: {error}") from error
    side = model.vision_config.image_size
    if _side_pixels(found) != side:
        raise MucoError(
            f"backbone.pretrained: {place}: the image processor makes pictures of {_side_pixels(found)} "
            f"pixels a side, the vision tower reads {side}"
        )
    return found


def _side_pixels(image_processor: Any) -> int:
    """Return the side of the pictures it makes."""
    crop, size = image_processor.crop_size, image_processor.size
    if crop and image_processor.do_center_crop:
        return crop["height"]
    return size["height"] if size.get("height") else size["shortest_edge"]
