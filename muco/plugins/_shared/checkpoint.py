"""Checkpoints in the transformers layout: loaded whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from muco.core.errors import DataError, MucoError
from muco.plugins._shared.chat import EMB, MASK

Dtype = Literal["float32", "bfloat16"]

_UNUSED_WEIGHTS = ("lm_head.", "language_model.lm_head.")
"""The head of a generating checkpoint, in today's layout and LLaVA's first; an embedder has none."""


def dtype_of(name: Dtype) -> torch.dtype:
    """Return torch's type of that name."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_model(name: str, dtype: Dtype, *, backbone: str, families: Sequence[str]) -> Any:
    """Return the model without its head; a weight that is missing or unexpected is an error, never random.

    Args:
        name: folder or hub name.
        dtype: of the weights.
        backbone: whose setting `pretrained` it is, for messages.
        families: the model types that it loads.

    Raises:
        MucoError: no such checkpoint, or one of another family.
        DataError: weights that do not fit.
    """
    from transformers import AutoConfig, AutoModel

    try:
        family = AutoConfig.from_pretrained(name).model_type
        if family not in families:
            raise MucoError(f"{name} is a {family} model; {backbone} loads {', '.join(families)}")
        model, report = AutoModel.from_pretrained(name, dtype=dtype_of(dtype), output_loading_info=True)
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


def add_tokens(model: Any, tokenizer: Any, *, known: Sequence[str] = ()) -> None:
    """Add `<|emb|>` and `<|mask|>`; the matrix grows only where its spare rows do not suffice.

    Args:
        model: of transformers.
        tokenizer: its own.
        known: tokens that become special where the tokenizer has them as ordinary additions: else a user's
            text would name them.
    """
    named = [token for token in known if token in tokenizer.get_added_vocab()]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [*named, EMB, MASK]}, replace_extra_special_tokens=False
    )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer))
