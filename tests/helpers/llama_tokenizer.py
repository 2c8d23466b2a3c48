"""A small tokenizer of Llama's kind."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.small import TEXTS


def llama_tokenizer() -> Any:
    """Return Llama's tokenizer, small: it begins texts with `<s>` and a space, and knows bytes by name."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import LlamaTokenizer

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = [*TEXTS, "USER: ASSISTANT: [INST] [/INST] <<SYS>> <</SYS>> Be brief."]
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=340, special_tokens=named, show_progress=False)
    )
    learnt = json.loads(raw.to_str())["model"]
    tokenizer = LlamaTokenizer(vocab=learnt["vocab"], merges=[tuple(pair) for pair in learnt["merges"]])
    tokenizer.add_tokens([AddedToken("<image>", special=False)])
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer
