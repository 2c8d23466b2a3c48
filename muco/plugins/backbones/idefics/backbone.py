"""The Idefics3 backbone, pretrained or with random weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt
from torch import nn

from muco.core.errors import MucoError
from muco.core.layers import ModelLayers
from muco.core.turns import EncoderInputs, ImageFeatures, TurnStates
from muco.plugins.backbones.bpe_tokenizer import train_tokenizer
from muco.plugins.backbones.checkpoint import load_image_processor
from muco.plugins.backbones.decoder.backbone import DecoderBackbone, DecoderSettings, place_features
from muco.plugins.backbones.idefics.layers import idefics_layers
from muco.plugins.backbones.idefics.processor import SPECIAL_TOKENS, IdeficsProcessor
from muco.plugins.backbones.idefics.random_init import TOKENS, RandomInitSettings, random_config


class Idefics(DecoderBackbone):
    """Idefics3 without its language-model head.

    References:
        Laurençon et al. 2024, arXiv:2408.12637: Idefics3.
    """

    class Config(DecoderSettings):
        random_init: RandomInitSettings | None = None
        """Random weights of this size instead, and a tokenizer trained on the training texts."""
        template: Literal["chat", "bare"] = "chat"
        """chat: the roles of Idefics3. bare: content and embedding token only, for random weights."""
        split_images: bool | None = None
        """Split an image into tiles, which are encoded before the whole image. null: as the checkpoint does;
        false with `random_init`."""
        longest_edge_pixels: PositiveInt | None = None
        """Resize the longer side of an image to this before it is split. null: as the checkpoint does; twice
        the side of a tile with `random_init`."""

    name = "idefics"
    families = ("idefics3",)
    language_name = "text_model"
    vision_name = "vision_model"
    known_tokens = SPECIAL_TOKENS

    @classmethod
    def layers_of(cls, config: Any, sizes: Mapping[str, Any]) -> ModelLayers | None:
        return idefics_layers(config, sizes)

    @classmethod
    def scratch_parts(cls, config: Config, texts: Iterable[str]) -> tuple[Any, Any]:
        assert config.random_init is not None
        sizes = config.random_init
        tokenizer = train_tokenizer(texts, vocab_size=sizes.vocab_size, special_tokens=TOKENS)
        return random_config(sizes, tokenizer), tokenizer

    @classmethod
    def make_processor(cls, config: Config, model: Any, tokenizer: Any, name: str | Path) -> IdeficsProcessor:
        if missing := [token for token in SPECIAL_TOKENS[:3] if token not in tokenizer.get_vocab()]:
            raise MucoError(f"backbone.pretrained: {name}: the tokenizer has no {', '.join(missing)}")
        images = _image_processor(config, model.config.vision_config.image_size, name)
        return IdeficsProcessor(tokenizer, images, config.template, model.config, rows=config)

    def encode(self, inputs: EncoderInputs, images: ImageFeatures | None = None) -> TurnStates:
        tensors = inputs.tensors
        embeds_RLH = self.embed(tensors["input_ids"])
        features = images or self.encode_images(inputs)
        if features is not None:
            connected = self.model.connector(features.tensors[0]).flatten(0, 1)
            embeds_RLH = place_features(embeds_RLH, tensors, connected)
        return self.decode(inputs, embeds_RLH)

    def encode_images(self, inputs: EncoderInputs) -> ImageFeatures | None:
        """Return [tiles, patches, vision size], the input of the connector."""
        if "pixel_values" not in inputs.tensors:
            return None
        pixels = self.processor.colors(inputs.tensors["pixel_values"])
        states = self.vision(pixels.to(self.model.dtype)).last_hidden_state
        return ImageFeatures(tensors=(states,))

    def connector_parameters(self) -> Iterable[nn.Parameter]:
        return self.model.connector.parameters()


def _image_processor(config: Idefics.Config, side_pixels: int, name: str | Path) -> Any:
    """Return the image processor of the checkpoint or of `random_init`, with the recipe's settings."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    settings: dict[str, Any] = {"return_row_col_info": False, "max_image_size": {"longest_edge": side_pixels}}
    edge, split = config.longest_edge_pixels, config.split_images
    if config.random_init is not None:
        settings |= config.random_init.colors()
        edge, split = edge or 2 * side_pixels, bool(split)
    settings |= {} if edge is None else {"size": {"longest_edge": edge}}
    settings |= {} if split is None else {"do_image_splitting": split}
    if config.random_init is not None:
        return Idefics3ImageProcessorPil(**settings)
    return load_image_processor(Idefics3ImageProcessorPil, name, **settings)
