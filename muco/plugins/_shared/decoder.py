"""What backbones around a vision-language model of transformers have in common.

R rows, L tokens of a row, H hidden size, T image tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muco.plugins._shared.adapted import AdaptedBackbone
from muco.plugins._shared.adapters import (
    AdaptedSettings,
    AdapterSettings,
    TokenRows,
    adapter_modules,
    linear_maps,
)
from muco.plugins._shared.attention import Kernel, RowSettings, attend_within, choose_kernel, layout_of
from muco.plugins._shared.checkpoint import Dtype
from muco.plugins._shared.rows import branch_mask
from muco.plugins._shared.strand_processor import StrandProcessor


class DecoderSettings(AdaptedSettings, RowSettings):
    """How the model is held and run; part of the settings of every decoder backbone."""

    dtype: Dtype = "float32"
    """Of the weights."""
    checkpoint_activations: bool = False
    """Keep each layer's input alone and compute the layer again on the way back: a third more work, a
    fraction of the memory."""


class DecoderBackbone(AdaptedBackbone):
    """A vision tower before a decoder; a subclass builds it, encodes images and puts both together."""

    def __init__(self, model: Any, processor: StrandProcessor, config: DecoderSettings) -> None:
        super().__init__(model)
        self.processor: Any = processor
        self.kernel: Kernel = config.attention
        self.causal = config.direction == "causal"
        if config.rows == "packed":
            attend_within(model.language_model)
        if config.checkpoint_activations:
            model.activation_checkpointing_enable({"use_reentrant": False})
        self.hidden_dim = model.config.get_text_config().hidden_size

    @property
    @abstractmethod
    def vision(self) -> nn.Module:
        """The vision tower."""

    def adaptable(self, settings: AdapterSettings) -> dict[nn.Module, list[str]]:
        towers = (self.model.language_model, *((self.vision,) if settings.vision else ()))
        return {tower: linear_maps(tower) for tower in towers}

    def frozen(self, config: DecoderSettings) -> Iterable[nn.Parameter]:
        return self.vision.parameters() if config.vision_is_frozen else ()

    def token_rows(self) -> TokenRows:
        return TokenRows(self.model.get_input_embeddings(), (self.processor.emb_id, self.processor.mask_id))

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder, state_dict=self.save_weights(folder))
        self.processor.save(folder)

    def about(self, device: torch.device, *, half: bool) -> str:
        if self.processor.padded:
            return "attention: padded rows"
        return f"attention: {choose_kernel(self.kernel, device, half=half)}"

    def shardable_modules(self) -> Iterable[nn.Module]:
        language: Any = self.model.language_model
        adapters = adapter_modules(language)
        # A module's weights are split together, so they need one dtype.
        mixed = len({weight.dtype for weight in language.parameters()}) > 1
        return [*(adapters if mixed else ()), *language.layers, language]

    def image_parameters(self) -> Iterable[nn.Parameter]:
        return self.vision.parameters()

    def attention(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
        """Return the arguments of a decoder's forward that tell its layers who sees whom.

        Args:
            tensors: of the chunk; `borders` where its rows are packed, `branches` where turns are isolated.
            dtype: of the embeddings.
        """
        borders, branches = tensors.get("borders"), tensors.get("branches")
        if borders is None:
            return {"attention_mask": None if branches is None else branch_mask(branches, causal=self.causal)}
        half = dtype.itemsize == 2 or torch.is_autocast_enabled(borders.device.type)
        chosen = choose_kernel(self.kernel, borders.device, half=half)
        return {"attention_mask": None, "layout": layout_of(chosen, borders, branches, causal=self.causal)}

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings [R, L, H] of tokens int64 [R, L], the new ones' own rows among them."""
        embeds_RLH = self.model.get_input_embeddings()(input_ids)
        return embeds_RLH if self.rows is None else self.rows(input_ids, embeds_RLH)


def place_features(embeds_RLH: Tensor, image_index: Tensor, features_TH: Tensor) -> Tensor:
    """Return the embeddings with image features in place of the placeholder's."""
    flat = embeds_RLH.flatten(0, 1)
    return flat.index_copy(0, image_index, features_TH.to(flat.dtype)).view_as(embeds_RLH)
