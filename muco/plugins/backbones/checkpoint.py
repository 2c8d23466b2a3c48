"""Checkpoints: loaded whole or not at all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from muco.core.errors import DataError, MucoError
from muco.plugins.backbones.decoder.chat import EMB, MASK

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
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel

    try:
        family = AutoConfig.from_pretrained(name).model_type
        if family not in families:
            raise MucoError(f"{name} is a {family} model; {backbone} loads {', '.join(families)}")
        model, report = AutoModel.from_pretrained(name, dtype=dtype_of(dtype), output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise MucoError(f"backbone.pretrained: {name} cannot be loaded: {error}") from error
    _refuse(
        {
            "missing": report["missing_keys"],
            "unexpected": [key for key in report["unexpected_keys"] if not key.startswith(_UNUSED_WEIGHTS)],
            "of another shape": map(str, report["mismatched_keys"]),
        },
        f"{name}: the weights do not fit a {family} model",
    )
    return model


def load_tokenizer(name: str | Path) -> Any:
    """Return the tokenizer of a checkpoint in the transformers layout.

    Args:
        name: folder or hub name.

    Raises:
        MucoError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise MucoError(f"{name}: its tokenizer cannot be loaded: {error}") from error
    # Where its files are missing, transformers makes some of its tokenizers without a vocabulary.
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise MucoError(f"{name}: its tokenizer knows no text; tokenizer.json is missing or empty")
    return tokenizer


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        DataError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: it cannot be read: {error}") from error


def check_fit(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], message: str, *, unread: Collection[str] = ()
) -> None:
    """Raise DataError, with the message, unless both hold the same names and shapes.

    Args:
        found: weights by name.
        wanted: those of the module that takes them.
        message: what does not fit what.
        unread: names that need not agree.
    """
    both = found.keys() & wanted.keys()
    wrong = {
        "missing": wanted.keys() - found.keys(),
        "unexpected": found.keys() - wanted.keys(),
        "of another shape": {name for name in both if found[name].shape != wanted[name].shape},
    }
    _refuse({what: names.difference(unread) for what, names in wrong.items()}, message)


def _refuse(wrong: Mapping[str, Iterable[str]], message: str) -> None:
    """Raise DataError where names of weights are wrong, with the first of each kind."""
    named = {what: sorted(names) for what, names in wrong.items()}
    if any(named.values()):
        told = "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in named.items() if names)
        raise DataError(f"{message}. {told}")


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
