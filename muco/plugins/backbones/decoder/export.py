"""Write a vision-language model as transformers, sentence-transformers and vLLM read it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from muco.core.errors import MucoError
from muco.core.exported import Exported, PooledState
from muco.plugins.backbones.decoder.chat import EMB
from muco.plugins.backbones.decoder.jinja_template import ChatFormat, jinja_template

if TYPE_CHECKING:
    from muco.plugins.backbones.decoder.processor import DecoderProcessor

_KINDS = ("text", "image", "image+text", "message")


def refuse_export(chat: ChatFormat, pooled: PooledState, *, causal: bool) -> None:
    """Raise MucoError if other tools cannot pool as muco does."""
    if pooled == "mean":
        raise MucoError(
            "the pooler `mean` cannot be exported: it leaves the system text and the images out of the mean, "
            "and other tools average all tokens. Train with `turn_token` or `last_token`."
        )
    tail = chat.template.assistant[1]
    if pooled == "turn_token" and tail and not causal:
        raise MucoError(
            f"this model cannot be exported: it is bidirectional, so its embedding token sees the {tail!r} "
            "after it, and other tools read only the last token. Train with the pooler `last_token`, or "
            "with `attention_direction: causal`."
        )


def export_processor(
    processor: DecoderProcessor, config: Any, folder: Path, *, system: str, pooled: PooledState
) -> None:
    """Write tokenizer, image processor and chat template."""
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or EMB  # other tools pad; no token attends to it
    beginning = "".join(tokenizer.convert_ids_to_tokens(list(processor.beginning)))
    chat, ends_turn = processor.chat_format(), pooled == "last_token"
    beginning += chat.leading if beginning else ""
    template = jinja_template(chat, system=system, beginning=beginning, ends_turn=ends_turn)
    processor.to_transformers(config, template).save_pretrained(folder)


def export_model(
    model: Any, folder: Path, *, causal: bool, sanitizes: bool, limits: Sequence[str]
) -> Exported:
    """Write the weights under their released names, with the class that has a language-model head.

    The head is tied to the input embeddings, so it takes no space: an embedder has none of its own.
    """
    from transformers import AutoModelForImageTextToText

    config = deepcopy(model.config)
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = True
        if not causal:
            part.is_causal = False
    with torch.device("meta"):
        whole: Any = AutoModelForImageTextToText.from_config(config)
    whole.model = model
    whole.tie_weights()
    whole.save_pretrained(folder)
    return Exported(
        type(whole).__name__,
        dict.fromkeys(_KINDS, ("forward", "last_hidden_state")),
        pools_last_token=True,
        sanitizes=sanitizes,
        limits=tuple(limits),
    )
