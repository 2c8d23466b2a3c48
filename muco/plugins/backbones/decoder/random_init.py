"""The size of a vision-language model with random weights."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from muco.core.component import ComponentConfig


class DecoderSizes(ComponentConfig):
    """The sizes that all families have. A subclass adds those of images."""

    head_multiple: ClassVar[int]
    """`hidden_dim` must be a multiple of this times `num_heads`."""
    vision_head_multiple: ClassVar[int]
    """`vision_dim` must be a multiple of this times `vision_heads`."""

    hidden_dim: PositiveInt = 128
    """Hidden size of the language model, and of the embedding unless the pooler projects it."""
    num_layers: PositiveInt = 4
    """Layers of the language model."""
    num_heads: PositiveInt = 4
    """Attention heads of the language model; they share `hidden_dim`."""
    num_kv_heads: PositiveInt = 2
    """Heads of keys and values; must divide `num_heads`."""
    mlp_dim: PositiveInt = 512
    """Size of the language model's feed-forward layers."""
    vision_dim: PositiveInt = 128
    """Hidden size of the vision tower."""
    vision_layers: PositiveInt = 4
    """Layers of the vision tower."""
    vision_heads: PositiveInt = 4
    """Attention heads of the vision tower; they share `vision_dim`."""
    image_mean: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Subtracted from every channel, where white is 1. Set it to the mean of the data: with a wrong mean, a
    small model learns slowly."""
    image_std: PositiveFloat = 0.25
    """Every channel is then divided by this."""
    vocab_size: PositiveInt = 1024
    """Limit on the tokens of the tokenizer that is trained on the data."""

    def colors(self) -> dict[str, list[float]]:
        """Return the colour settings of an image processor of transformers."""
        return {"image_mean": [self.image_mean] * 3, "image_std": [self.image_std] * 3}

    def text_config(self, model_type: str, tokenizer: Any, *, eos_token: str, **settings: Any) -> Any:
        """Return the configuration of a transformers language model of this size, with one position axis."""
        from transformers import AutoConfig

        return AutoConfig.for_model(
            model_type,
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_dim,
            intermediate_size=self.mlp_dim,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            max_position_embeddings=4096,
            # The default of 0.02 is for models of thousands of dimensions. In a small model it leaves every
            # layer's output near zero, and training starts slowly.
            initializer_range=self.hidden_dim**-0.5,
            bos_token_id=None,
            eos_token_id=tokenizer.convert_tokens_to_ids(eos_token),
            pad_token_id=tokenizer.pad_token_id,
            **settings,
        )

    def tower_config(self) -> dict[str, Any]:
        """Return settings that the vision towers of CLIP, SigLIP and Idefics3 share."""
        return {
            "hidden_size": self.vision_dim,
            "intermediate_size": 4 * self.vision_dim,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
        }

    @model_validator(mode="after")
    def _heads_fit(self) -> DecoderSizes:
        if self.hidden_dim % (self.num_heads * self.head_multiple):
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be a multiple of {self.head_multiple} x num_heads "
                f"{self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        if self.vision_dim % (self.vision_heads * self.vision_head_multiple):
            times = "" if self.vision_head_multiple == 1 else f"{self.vision_head_multiple} x "
            raise ValueError(
                f"vision_dim {self.vision_dim} must be a multiple of {times}vision_heads {self.vision_heads}"
            )
        return self
