"""The Qwen-VL backbones: pretrained or from scratch, causal or isolated turns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from muco.core.backbone import Backbone
from muco.core.component import Feature
from muco.core.errors import DataError, MucoError
from muco.core.turns import EncoderInputs, ImageFeatures, TurnStates
from muco.plugins._shared.adapters import (
    AdaptedSettings,
    TokenRows,
    adapt,
    adapter_modules,
    load_adapter,
    merge,
    refuse_adapter,
    save_adapter,
    split_state,
)
from muco.plugins._shared.attention import (
    Kernel,
    RowSettings,
    attend_within,
    choose_kernel,
    contexts_of,
    layout_of,
)
from muco.plugins._shared.chat import EMB, MASK, TemplateName
from muco.plugins._shared.rows import branch_mask
from muco.plugins.backbones.qwen_vl.processor import QwenVLProcessor
from muco.plugins.backbones.qwen_vl.scratch import (
    Family,
    ScratchSettings,
    scratch_config,
    scratch_tokenizer,
)

_UNUSED_WEIGHTS = ("lm_head.",)
"""The head of a generating checkpoint; an embedder has none."""


class QwenVL(Backbone):
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL without its language-model head.

    References:
        Wang et al. 2024, arXiv:2409.12191: Qwen2-VL, M-RoPE.
        Bai et al. 2025, arXiv:2502.13923: Qwen2.5-VL, attention in windows of the vision tower.
        Bai et al. 2025, arXiv:2511.21631: Qwen3-VL, interleaved M-RoPE, features of inner vision layers.
    """

    class Config(AdaptedSettings, RowSettings):
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
        dtype: Literal["float32", "bfloat16"] = "float32"
        """Of the weights."""
        checkpoint_activations: bool = False
        """Keep each layer's input alone and compute the layer again on the way back: a third more work, a
        fraction of the memory."""

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

    def __init__(self, model: Any, processor: QwenVLProcessor, config: Config) -> None:
        super().__init__()
        self.model = model
        self.processor: QwenVLProcessor = processor
        self.kernel: Kernel = config.attention
        self.causal = config.direction == "causal"
        if config.rows == "packed":
            attend_within(model.language_model)
        if config.checkpoint_activations:
            model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self.rows: TokenRows | None = None
        if config.vision_is_frozen:
            model.visual.requires_grad_(False)
        if config.adapter is not None:
            towers = (model.visual,) if config.adapter.vision else ()
            adapt((model.language_model, *towers), config.adapter)
            self.rows = TokenRows(model.get_input_embeddings(), (processor.emb_id, processor.mask_id))
        self.hidden_dim = model.config.get_text_config().hidden_size  # type: ignore[union-attr]

    @classmethod
    def build(cls, config: Config, *, texts: Iterable[str]) -> Self:
        from transformers import AutoModel, AutoTokenizer

        if config.scratch is None:
            assert config.pretrained is not None
            model = _pretrained(config.pretrained, config.dtype)
            tokenizer = AutoTokenizer.from_pretrained(config.pretrained)
            _add_tokens(model, tokenizer)
            return cls._of(model, tokenizer, config, place=config.pretrained)
        tokenizer = scratch_tokenizer(config.scratch, texts)
        # Converted afterwards, the frequencies of positions would be rounded too.
        model = AutoModel.from_config(scratch_config(config.scratch, tokenizer), dtype=_dtype(config.dtype))
        return cls._of(model, tokenizer, config, place="")

    @classmethod
    def load(cls, config: Config, folder: Path) -> Self:
        from transformers import AutoTokenizer

        model = _pretrained(str(folder), config.dtype)
        backbone = cls._of(model, AutoTokenizer.from_pretrained(folder), config, place=folder)
        if backbone.rows is None:
            refuse_adapter(folder)
        else:
            load_adapter(folder, backbone.model, backbone.rows)
        return backbone

    @classmethod
    def _of(cls, model: Any, tokenizer: Any, config: Config, *, place: str | Path) -> Self:
        """Return the backbone; `place` holds the checkpoint's image processor."""
        images = _image_processor(config, model, place)
        processor = QwenVLProcessor(
            tokenizer, images, config.template, padded=config.rows == "padded", direction=config.direction
        )
        return cls(model, processor, config)

    def save(self, folder: Path) -> None:
        base, own = split_state(self.model)
        self.model.save_pretrained(folder, state_dict=base)  # type: ignore[operator]
        if self.rows is not None:
            save_adapter(folder, own, self.rows)
        self.processor.save(folder)

    def merge_adapters(self) -> None:
        if self.rows is not None:
            self.rows.merge(self.model.get_input_embeddings())  # type: ignore[operator]
            merge(self.model)
            self.rows = None

    def encode(self, inputs: EncoderInputs, images: ImageFeatures | None = None) -> TurnStates:
        tensors = inputs.tensors
        embeds_RLH = self.model.get_input_embeddings()(tensors["input_ids"])  # type: ignore[operator]
        if self.rows is not None:
            embeds_RLH = self.rows(tensors["input_ids"], embeds_RLH)
        features = images or self.encode_images(inputs)
        deep: dict[str, Any] = {}
        if features is not None:
            first, *others = features.tensors
            embeds_RLH = _place(embeds_RLH, tensors["image_index"], first)
            if others:
                is_image = tensors["input_ids"] == self.processor.image_id
                deep = {"visual_pos_masks": is_image, "deepstack_visual_embeds": others}
        hidden_RLH = self.model.language_model(  # type: ignore[operator]
            inputs_embeds=embeds_RLH,
            position_ids=tensors["position_ids"],
            use_cache=False,
            **self._attention(tensors, embeds_RLH.dtype),
            **deep,
        ).last_hidden_state
        return TurnStates(hidden=hidden_RLH.flatten(0, 1), places=inputs.places, ids=inputs.ids)

    def about(self, device: torch.device, *, half: bool) -> str:
        if self.processor.padded:
            return "attention: padded rows"
        return f"attention: {choose_kernel(self.kernel, device, half=half)}"

    def _attention(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
        """Return what tells the layers who sees whom."""
        borders, branches = tensors.get("borders"), tensors.get("branches")
        if borders is None:
            return {"attention_mask": None if branches is None else branch_mask(branches, causal=self.causal)}
        half = dtype.itemsize == 2 or torch.is_autocast_enabled(borders.device.type)
        kernel = choose_kernel(self.kernel, borders.device, half=half)
        return {"attention_mask": None, "layout": layout_of(kernel, borders, branches, causal=self.causal)}

    def encode_images(self, inputs: EncoderInputs) -> ImageFeatures | None:
        if "pixel_values" not in inputs.tensors:
            return None
        found = self.model.get_image_features(  # type: ignore[operator]
            self.processor.colors(inputs.tensors["pixel_values"]), inputs.tensors["image_grid_thw"]
        )
        # Qwen3-VL adds the features of some inner layers to hidden states of its decoder's first layers.
        parts = (found.pooler_output, *getattr(found, "deepstack_features", ()))
        return ImageFeatures(tensors=tuple(torch.cat(tuple(part)) for part in parts))

    def shardable_modules(self) -> Iterable[nn.Module]:
        language: Any = self.model.language_model
        adapters = adapter_modules(language)
        # A module's weights are split together, so they need one dtype.
        mixed = len({weight.dtype for weight in language.parameters()}) > 1
        return [*(adapters if mixed else ()), *language.layers, language]

    def image_parameters(self) -> Iterable[nn.Parameter]:
        return self.model.visual.parameters()  # type: ignore[union-attr]


def _place(embeds_RLH: Tensor, image_index: Tensor, features_TH: Tensor) -> Tensor:
    """Return the embeddings with image features in place of the placeholder's."""
    flat = embeds_RLH.flatten(0, 1)
    return flat.index_copy(0, image_index, features_TH.to(flat.dtype)).view_as(embeds_RLH)


def _pretrained(name: str, dtype: str) -> Any:
    """Load a checkpoint; a weight that is missing or unexpected is an error, never random."""
    from transformers import AutoConfig, AutoModel

    try:
        family = AutoConfig.from_pretrained(name).model_type
        if family not in get_args(Family):
            raise MucoError(f"{name} is a {family} model; qwen_vl loads {', '.join(get_args(Family))}")
        model, report = AutoModel.from_pretrained(name, dtype=_dtype(dtype), output_loading_info=True)
    except OSError as error:
        raise MucoError(f"backbone.pretrained: {name} cannot be loaded: {error}") from error
    strange = [key for key in report["unexpected_keys"] if not key.startswith(_UNUSED_WEIGHTS)]
    wrong = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(strange),
        "of another shape": sorted(str(key) for key in report["mismatched_keys"]),
    }
    if any(wrong.values()):
        told = "; ".join(f"{what}: {', '.join(keys[:5])}" for what, keys in wrong.items() if keys)
        raise DataError(f"{name}: the weights do not fit a {family} model. {told}")
    return model


def _add_tokens(model: Any, tokenizer: Any) -> None:
    """Add `<|emb|>` and `<|mask|>`; the matrix grows only where its spare rows do not suffice."""
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [EMB, MASK]}, replace_extra_special_tokens=False
    )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer))


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


def _dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
