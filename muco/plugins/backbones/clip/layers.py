"""The layers of a CLIP of open_clip, from its configuration as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muco.core.layers import Block, DialogueShape, Lengths, Linear, ModelLayers, Part
from muco.core.turns import EncoderInputs
from muco.plugins.backbones.lora import adapted_linear

_KNOWN_VISION = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}
_KNOWN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
_FREE = {
    "pool_type",
    "ls_init_value",
    "hf_tokenizer_name",
    "pad_id",
    "eos_id",
    "output_tokens",
    "patch_dropout",
}
_FREE |= {"timm_model_pretrained", "tokenizer_kwargs"}
"""Keys that no product of matrices depends on."""


class ClipLayers(ModelLayers):
    """A transformer for images and one for texts."""

    def __init__(self, config: Any, sizes: Mapping[str, Any]) -> None:
        vision, self.text = sizes["vision_cfg"], sizes["text_cfg"]
        self.num_patches = (vision["image_size"] // vision["patch_size"]) ** 2
        dim = self.hidden_dim = sizes["embed_dim"]
        adapted = config.adapter is not None
        sees_adapters = adapted and config.adapter.vision
        image = {"trained": not config.vision_is_frozen, "adapter": config.adapter if sees_adapters else None}
        words = {"trained": not (config.freeze_text or adapted), "adapter": config.adapter}
        patch = Linear(
            "conv1", 3 * vision["patch_size"] ** 2, vision["width"], image["trained"], reads_input=True
        )
        proj = Linear("proj", vision["width"], dim, image["trained"])
        text_proj = Linear("text_projection", self.text["width"], dim, words["trained"])
        checkpointed = config.gradient_checkpointing
        self.parts = (
            Part(
                "vision tower",
                (
                    Block((patch,), "patches"),
                    _transformer(vision, "features", checkpointed=checkpointed, **image),
                    Block((proj,), "images"),
                ),
                input_gradient=False,
                computes_images=True,
            ),
            Part(
                "text tower",
                (
                    _transformer(self.text, "tokens", checkpointed=checkpointed, **words),
                    Block((text_proj,), "texts"),
                ),
                input_gradient=words["trained"],
            ),
        )

    def lengths_of(self, chunk: EncoderInputs) -> Lengths:
        tensors = chunk.tensors
        texts, length = tensors["input_ids"].shape if "input_ids" in tensors else (0, 0)
        return self._lengths(len(tensors.get("pixel_values", ())), [length] * texts)

    def lengths_for(self, dialogues: Sequence[DialogueShape]) -> Lengths:
        texts = [
            min(tokens, self.text["context_length"])
            for each in dialogues
            for tokens in each.turn_tokens
            if tokens
        ]
        return self._lengths(sum(len(each.images) for each in dialogues), texts)

    def _lengths(self, images: int, texts: Sequence[int]) -> Lengths:
        return Lengths(
            {
                "patches": [self.num_patches] * images,
                "features": [self.num_patches + 1] * images,
                "images": [images],
                "tokens": texts,
                "texts": [len(texts)],
            },
            {"tokens": sum(length * (length + 1) // 2 for length in texts)},
        )


def clip_layers(config: Any, sizes: Mapping[str, Any]) -> ClipLayers | None:
    """Return the layers of two transformers of open_clip; None for other towers, those of timm among them."""
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    unknown = {key for key, value in vision.items() if value is not None} - _KNOWN_VISION - _FREE
    unknown |= {key for key, value in text.items() if value is not None} - _KNOWN_TEXT - _FREE
    is_resnet = not isinstance(vision.get("layers"), int)
    return None if unknown or is_resnet or config.image_tower is not None else ClipLayers(config, sizes)


def _transformer(
    tower: Mapping[str, Any], rows: str, *, checkpointed: bool, trained: bool, adapter: Any
) -> Block:
    dim = tower["width"]
    mlp = int(dim * tower.get("mlp_ratio", 4.0))
    linears = (
        Linear("attn.in_proj", dim, 3 * dim, trained, reads_input=True),
        Linear("attn.out_proj", dim, dim, trained),
        Linear("mlp.c_fc", dim, mlp, trained),
        Linear("mlp.c_proj", mlp, dim, trained),
    )
    if adapter is not None:
        linears = tuple(adapted_linear(each, adapter) for each in linears)
    return Block(linears, rows, tower["layers"], attention_dim=dim, checkpointed=checkpointed)
