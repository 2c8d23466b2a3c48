"""The LLaVA backbone: pretrained or random weights, causal or isolated turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from muco.core.component import Feature
from muco.core.errors import MucoError, library_errors
from muco.core.layers import ModelLayers
from muco.core.turns import EncoderInputs, ImageFeatures, TurnStates
from muco.plugins.backbones.checkpoint import load_image_processor
from muco.plugins.backbones.decoder.attention import has_sliding_windows
from muco.plugins.backbones.decoder.backbone import DecoderBackbone, DecoderSettings, place_features
from muco.plugins.backbones.decoder.chat_templates import TemplateName, find_template
from muco.plugins.backbones.llava.layers import llava_layers
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
from muco.plugins.backbones.llava.tiling import Tiling, limited_grids

_RANDOM_INIT_TILES = 2


class Llava(DecoderBackbone):
    """LLaVA-1.5, LLaVA-NeXT or LLaVA-OneVision without the language-model head.

    References:
        Liu et al. 2023, arXiv:2310.03744: LLaVA-1.5.
        Liu et al. 2024, llava-vl.github.io/blog/2024-01-30-llava-next: LLaVA-NeXT.
        Li et al. 2024, arXiv:2408.03326: LLaVA-OneVision.
    """

    class Config(DecoderSettings):
        random_init: RandomInitSettings | None = None
        """Instead of `pretrained`: random weights, and a tokenizer trained on the training texts."""
        template: TemplateName = "auto"
        """vicuna, mistral, chatml: the roles of those language models. bare: only content and embedding
        token, for models with random weights. auto: the template of the checkpoint's language model."""
        max_tiles: PositiveInt | None = None
        """Use only grids of at most this many tiles; null: all of the checkpoint, 2 with `random_init`."""
        max_frames: PositiveInt = 8
        """Most frames of a video; of a longer one, this many evenly spaced frames are read. Only
        LLaVA-OneVision reads videos."""

    name = "llava"
    families = get_args(Family)
    vision_name = "vision_tower"
    known_tokens = (IMAGE, VIDEO)

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        # The settings do not tell the family of a checkpoint, so any may read videos.
        if config.random_init is None or config.random_init.family == "llava_onevision":
            return super().offers(config).union(("video",))
        return super().offers(config)

    @classmethod
    def layers_of(cls, config: Any, sizes: Mapping[str, Any]) -> ModelLayers | None:
        return llava_layers(config, sizes)

    @classmethod
    def scratch_parts(cls, config: Config, texts: Iterable[str]) -> tuple[Any, Any]:
        assert config.random_init is not None
        tokenizer = scratch_tokenizer(config.random_init, texts)
        max_tiles = config.max_tiles or _RANDOM_INIT_TILES
        return scratch_config(config.random_init, tokenizer, max_tiles=max_tiles), tokenizer

    @classmethod
    def make_processor(cls, config: Config, model: Any, tokenizer: Any, name: str | Path) -> LlavaProcessor:
        if model.config.model_type != "llava":
            model.config.image_grid_pinpoints = limited_grids(model.config, config.max_tiles)
        images = _image_processor(config, model.config, name)
        with library_errors(f"{name}: config.json does not describe how images are split"):
            tiling = Tiling.of(model.config)
        return LlavaProcessor(
            tokenizer,
            images,
            find_template(config.template, tokenizer, decoder=model.config.text_config.model_type),
            tiling,
            image_id=model.config.image_token_id,
            video_id=getattr(model.config, "video_token_id", None),
            max_frames=config.max_frames,
            rows=config,
        )

    def encode(self, inputs: EncoderInputs, images: ImageFeatures | None = None) -> TurnStates:
        tensors = inputs.tensors
        if "segment_ids" in tensors and has_sliding_windows(self.model.language_model.config):
            raise MucoError(
                "backbone: this model has sliding-window attention, which isolated turns do not support"
            )
        embeds_RLH = self.embed(tensors["input_ids"])
        features = images or self.encode_images(inputs)
        if features is not None:
            projected = self._project(features.tensors[0], tensors)
            embeds_RLH = place_features(embeds_RLH, tensors, projected)
        return self.decode(inputs, embeds_RLH)

    def encode_images(self, inputs: EncoderInputs) -> ImageFeatures | None:
        """Return [pictures, patches, vision size], the input of the projector."""
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
        # The first feature is the class token of the picture.
        drop_first = self.model.config.vision_feature_select_strategy == "default"
        return ImageFeatures(tensors=(features[:, 1:] if drop_first else features,))

    def connector_parameters(self) -> list[nn.Parameter]:
        """Return the weights of the projector, and of the token that ends a row of patches."""
        newline = [self.model.image_newline] if hasattr(self.model, "image_newline") else []
        return [*self.model.multi_modal_projector.parameters(), *newline]

    def _project(self, features: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Return the features of all images, [features, H].

        Tiles are joined, padding is cut off, and rows and videos end with a token.
        """
        projected = self.model.multi_modal_projector(features)
        if "image_tiles" not in tensors:
            return projected.flatten(0, 1)
        parts = projected.split(tensors["image_tiles"].tolist())
        sizes, are_videos = tensors["image_sizes"].tolist(), tensors["image_is_video"].tolist()
        items = list(zip(parts, sizes, are_videos, strict=True))
        images = iter(self._pack_images([(part, size) for part, size, is_video in items if not is_video]))
        return torch.cat(
            [self._pool_video(part) if is_video else next(images) for part, _, is_video in items]
        )

    def _pool_video(self, frames: Tensor) -> Tensor:
        """Return a video's tokens [tokens, H] from the patches of its frames [frames, patches, H]."""
        pooled = self.model.apply_pooling(frames).flatten(0, 1)
        return torch.cat((pooled, self.model.image_newline[None].to(pooled.dtype)))

    def _pack_images(self, images: list[tuple[Tensor, list[int]]]) -> tuple[Tensor, ...]:
        """Return each image's tokens [tokens, H].

        Of each image, the arguments are its pictures [tiles, patches, H], and its height and width in pixels.
        """
        if not images:
            return ()
        is_onevision = self.model.config.model_type == "llava_onevision"
        option = "vision_aspect_ratio" if is_onevision else "vision_feature_select_strategy"
        parts, sizes = map(list, zip(*images, strict=True))
        tokens, _ = self.model.pack_image_features(
            parts,
            sizes,
            image_newline=self.model.image_newline,
            **{option: getattr(self.model.config, option)},
        )
        return tuple(tokens)


def _image_processor(config: Llava.Config, model: Any, name: str | Path) -> Any:
    """Return the family's image processor, from the checkpoint or for `random_init`.

    Raise MucoError if the checkpoint has none, or its picture size is not that of the vision tower.
    """
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_onevision import image_processing_pil_llava_onevision as onevision

    cls = {
        "llava": LlavaImageProcessorPil,
        "llava_next": LlavaNextImageProcessorPil,
        "llava_onevision": onevision.LlavaOnevisionImageProcessorPil,
    }[model.model_type]
    grids = {} if model.model_type == "llava" else {"image_grid_pinpoints": model.image_grid_pinpoints}
    if config.random_init is not None:
        return cls(**scratch_image_settings(config.random_init), **grids)
    image_processor = load_image_processor(cls, name, **grids)
    side = model.vision_config.image_size
    if _side_pixels(image_processor) != side:
        raise MucoError(
            f"backbone.pretrained: {name}: the image processor makes pictures of "
            f"{_side_pixels(image_processor)} pixels a side, but the vision tower reads {side}"
        )
    return image_processor


def _side_pixels(image_processor: Any) -> int:
    """Return the side of the pictures that the image processor makes."""
    crop, size = image_processor.crop_size, image_processor.size
    if crop and image_processor.do_center_crop:
        return crop["height"]
    return size["height"] if size.get("height") else size["shortest_edge"]
