"""The base class of backbones that wrap a vision-language model of transformers.

R rows, L tokens of a row, H hidden size, T image tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from os.path import expanduser
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from muco.core.component import Feature
from muco.core.exported import Exported, PooledState
from muco.core.turns import EncoderInputs, TurnStates
from muco.plugins.backbones.checkpoint import (
    Dtype,
    add_tokens,
    dtype_of,
    load_model,
    load_tokenizer,
    local_sizes,
)
from muco.plugins.backbones.decoder.attention import (
    Kernel,
    RowSettings,
    attend_within,
    choose_kernel,
    contexts_of,
    layout_of,
)
from muco.plugins.backbones.decoder.export import export_model, export_processor, refuse_export
from muco.plugins.backbones.decoder.last_layer import LastLayer
from muco.plugins.backbones.decoder.packing import segment_mask
from muco.plugins.backbones.decoder.processor import DecoderProcessor
from muco.plugins.backbones.decoder.random_init import DecoderSizes
from muco.plugins.backbones.lora import (
    AdaptedSettings,
    AdapterSettings,
    TokenRows,
    linear_layers,
)
from muco.plugins.backbones.lora_backbone import AdaptedBackbone


class DecoderSettings(AdaptedSettings, RowSettings):
    """The settings that all decoder backbones share."""

    pretrained: str | None = None
    """Folder or hub name of a checkpoint in the transformers layout. Its configuration decides the family."""
    random_init: DecoderSizes | None = None
    """Random weights of this family and size, and a tokenizer trained on the training texts."""
    dtype: Dtype = "float32"
    """Dtype of the weights."""
    gradient_checkpointing: bool = False
    """Store only the input of each layer and compute the layer again in the backward pass: about a third more
    work, much less memory."""

    @model_validator(mode="after")
    def _one_origin(self) -> DecoderSettings:
        if (self.pretrained is None) == (self.random_init is None):
            raise ValueError("give either `pretrained` or `random_init`, not both or neither")
        return self


class DecoderBackbone(AdaptedBackbone):
    """A vision tower and a decoder. A subclass names both, encodes images and inserts their features."""

    name: ClassVar[str]
    """Name in recipes."""
    families: ClassVar[tuple[str, ...]]
    """The values of `model_type` in transformers that it loads."""
    language_name: ClassVar[str] = "language_model"
    """Attribute of the transformers model that holds the language model."""
    vision_name: ClassVar[str]
    """Attribute of the transformers model that holds the vision tower."""
    known_tokens: ClassVar[tuple[str, ...]] = ()
    """Tokens that are made special if a checkpoint's tokenizer has them as ordinary added tokens."""

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        return contexts_of(config.attention_direction).union({"image_targets"})

    @classmethod
    def hidden_dim_of(cls, config: Any) -> int | None:
        return config.random_init and config.random_init.hidden_dim

    @classmethod
    def sizes_of(cls, config: Any) -> Mapping[str, Any] | None:
        if config.pretrained is None:
            return cls.scratch_parts(config, ())[0].to_dict()
        return local_sizes(config.pretrained)

    @classmethod
    def build(cls, config: Any, *, texts: Iterable[str]) -> Self:
        from transformers import AutoModel

        start = None if config.pretrained is None else expanduser(config.pretrained)
        if start is not None:
            model, tokenizer = cls._model(start, config), load_tokenizer(start)
            add_tokens(model, tokenizer, known=cls.known_tokens)
        else:
            sizes, tokenizer = cls.scratch_parts(config, texts)
            # A later conversion of the dtype would also round the frequencies of RoPE.
            model = AutoModel.from_config(sizes, dtype=dtype_of(config.dtype))
        processor = cls.make_processor(config, model, tokenizer, start or "")
        return cls(model, processor, config).set_up(config, start=start)

    @classmethod
    def load(cls, config: Any, folder: Path) -> Self:
        model = cls._model(str(folder), config)
        processor = cls.make_processor(config, model, load_tokenizer(folder), folder)
        backbone = cls(model, processor, config).set_up(config)
        backbone.read_adapter(folder)
        return backbone

    @classmethod
    @abstractmethod
    def scratch_parts(cls, config: Any, texts: Iterable[str]) -> tuple[Any, Any]:
        """Return configuration and tokenizer of a model with random weights."""

    @classmethod
    @abstractmethod
    def make_processor(cls, config: Any, model: Any, tokenizer: Any, name: str | Path) -> DecoderProcessor:
        """Return the processor. `name` is the checkpoint; not read for random weights."""

    @classmethod
    def _model(cls, name: str, config: DecoderSettings) -> Any:
        return load_model(name, config.dtype, backbone=cls.name, families=cls.families)

    def __init__(self, model: Any, processor: DecoderProcessor, config: DecoderSettings) -> None:
        super().__init__(model)
        self.processor: Any = processor
        self.sizes = model.config.to_dict()
        self.kernel: Kernel = config.attention
        self.causal = config.attention_direction == "causal"
        if config.rows == "packed":
            attend_within(self.language)
        if config.gradient_checkpointing:
            self.checkpoint_gradients()
        self.last_layer = LastLayer()
        text_config = model.config.get_text_config()
        self.hidden_dim = text_config.hidden_size
        processor.max_positions = getattr(text_config, "max_position_embeddings", None)

    @property
    def language(self) -> Any:
        """The language model."""
        return getattr(self.model, self.language_name)

    @property
    def vision(self) -> nn.Module:
        """The vision tower."""
        return getattr(self.model, self.vision_name)

    def adaptable(self, settings: AdapterSettings) -> dict[nn.Module, list[str]]:
        towers = (self.language, *((self.vision,) if settings.vision else ()))
        return {tower: linear_layers(tower) for tower in towers}

    def frozen(self, config: DecoderSettings) -> Iterable[nn.Parameter]:
        if config.vision_is_frozen:
            yield from self.vision.parameters()
            if config.adapter is not None:
                yield from self.connector_parameters()

    def connector_parameters(self) -> Iterable[nn.Parameter]:
        """Return the weights between vision tower and language model, frozen with both; none by default."""
        return ()

    def token_rows(self) -> TokenRows:
        return TokenRows(self.model.get_input_embeddings(), (self.processor.emb_id, self.processor.mask_id))

    def set_up(self, config: Any, *, start: str | None = None) -> Self:
        super().set_up(config, start=start)
        self.last_layer.attach(self.language.layers[-1])
        return self

    def merge_adapters(self) -> None:
        super().merge_adapters()
        self.last_layer.attach(self.language.layers[-1])

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder, state_dict=self.save_weights(folder))
        self.processor.save(folder)

    def export(self, folder: Path, *, system: str, pooled: PooledState) -> Exported:
        refuse_export(self.processor.chat_format(), pooled, causal=self.causal)
        export_processor(self.processor, self.model.config, folder, system=system, pooled=pooled)
        return export_model(
            self.model,
            folder,
            causal=self.causal,
            sanitizes=self.processor.sanitizes,
            limits=self.processor.export_limits(),
        )

    def startup_summary(self, device: torch.device, *, half: bool) -> str:
        if self.processor.padded:
            return "attention: padded rows"
        return f"attention: {choose_kernel(self.kernel, device, half=half)}"

    def shardable_modules(self) -> Iterable[nn.Module]:
        language = self.language
        return [*language.layers, language.get_input_embeddings(), language]

    def checkpoint_gradients(self) -> bool:
        was_on = self.model.is_activation_checkpointing
        self.model.activation_checkpointing_enable({"use_reentrant": False})
        # transformers makes the inputs of towers need a gradient, which a frozen tower must not compute.
        self.model.disable_input_require_grads()
        return not was_on

    def image_parameters(self) -> Iterable[nn.Parameter]:
        return self.vision.parameters()

    def decode(self, inputs: EncoderInputs, embeds_RLH: Tensor, **arguments: Any) -> TurnStates:
        """Return the language model's last hidden states of embeddings [R, L, H]; `arguments` are its own."""
        position_ids = inputs.tensors["position_ids"]
        hidden_RLH = self.language(
            inputs_embeds=embeds_RLH,
            position_ids=position_ids if len(position_ids) > 1 else position_ids[0],
            use_cache=False,
            read_tokens=inputs.read_tokens,
            **self.attention(inputs.tensors, embeds_RLH.dtype),
            **arguments,
        ).last_hidden_state
        return TurnStates(hidden=hidden_RLH.flatten(0, 1), spans=inputs.spans, ids=inputs.ids)

    def attention(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
        """Return the arguments of the decoder's forward that decide which tokens see which.

        Args:
            tensors: the chunk's; see `packing.Rows`.
            dtype: that of the embeddings.
        """
        cu_seqlens, segment_ids = tensors.get("cu_seqlens"), tensors.get("segment_ids")
        if cu_seqlens is None:
            has_segments = segment_ids is not None
            return {"attention_mask": segment_mask(segment_ids, causal=self.causal) if has_segments else None}
        half = dtype.itemsize == 2 or torch.is_autocast_enabled(cu_seqlens.device.type)
        chosen = choose_kernel(self.kernel, cu_seqlens.device, half=half)
        layout = layout_of(chosen, cu_seqlens, segment_ids, causal=self.causal)
        return {"attention_mask": None, "layout": layout}

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings [R, L, H] of tokens int64 [R, L], with the trained rows of new tokens."""
        embeds_RLH = self.model.get_input_embeddings()(input_ids)
        return embeds_RLH if self.rows is None else self.rows(input_ids, embeds_RLH)


def features_of_tokens(tensors: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Return the feature of each image token, [T, H], from the features of a chunk's distinct images."""
    index = tensors.get("feature_index")
    return features if index is None else features.index_select(0, index)


def place_features(embeds_RLH: Tensor, tensors: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Return the embeddings of a chunk with the features of its distinct images at its image tokens."""
    flat = embeds_RLH.flatten(0, 1)
    features_TH = features_of_tokens(tensors, features).to(flat.dtype)
    return flat.index_copy(0, tensors["image_index"], features_TH).view_as(embeds_RLH)
