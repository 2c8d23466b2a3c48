"""Tokens of texts by open_clip's tokenizers; text of users cannot contain special tokens."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from muco.core.errors import DataError


class TextReader:
    """Convert texts to rows of tokens, each within the text tower's context."""

    def __init__(self, tokenizer: Any, *, full_context: bool, truncate: bool) -> None:
        """Change a tokenizer of open_clip to read special tokens in a text as ordinary characters.

        `full_context` pads every text to the tower's context, because the tower reads padding. `truncate`
        cuts longer texts; else they are errors.
        """
        self.tokenizer = tokenizer
        self.inner = getattr(tokenizer, "tokenizer", None)
        """A tokenizer of transformers; None if `tokenizer` is CLIP's own."""
        self.padding_id = 0 if self.inner is None else self.inner.pad_token_id or 0
        self.full_context = full_context
        self.truncate = truncate
        _ignore_special_tokens(tokenizer)
        self._set_cache()

    def _set_cache(self) -> None:
        self._tokens = lru_cache(maxsize=65536)(self._tokenize)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_tokens"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_cache()

    def num_tokens(self, text: str) -> int:
        """Return how many tokens the tower reads, including padding if it reads padding.

        Raise DataError if the text is too long and `truncate` is false.
        """
        length = len(self._tokens(text)[0])
        return self.tokenizer.context_length if self.full_context else length

    def is_cut(self, text: str) -> bool:
        """Return whether the text is cut to the tower's context."""
        return self._tokens(text)[1]

    def rows(self, texts: Iterable[str]) -> Tensor:
        """Return int64 [texts, L], padded on the right to the longest text or to the context."""
        rows = [self._tokens(text)[0] for text in texts]
        length = self.tokenizer.context_length if self.full_context else max(map(len, rows))
        return torch.tensor([(*ids, *[self.padding_id] * (length - len(ids))) for ids in rows])

    def _tokenize(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Return the token ids of a text, and whether it was cut."""
        limit = self.tokenizer.context_length
        ids = self._ids(text, None)
        if len(ids) <= limit:
            return ids, False
        if not self.truncate:
            raise DataError(
                f"text of {len(ids)} tokens, {text[:60]!r}: the text tower takes {limit}. Shorten it, or set "
                "`backbone.truncate: true` to cut such texts and count them"
            )
        return self._ids(text, limit), True

    def _ids(self, text: str, limit: int | None) -> tuple[int, ...]:
        """Return the token ids of a text with start and end, at most `limit` of them."""
        text = self.tokenizer.clean_fn(text)
        if self.inner is not None:
            cut = {"truncation": True, "max_length": limit} if limit else {}
            ids = self.inner(text, **cut)["input_ids"]
            # A few checkpoints were trained with the separator replaced by 0.
            separator = self.inner.sep_token_id if self.tokenizer.strip_sep_token else None
            return tuple(0 if token == separator else token for token in ids)
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        ids = (start, *self.tokenizer.encode(text), end)
        return ids if limit is None else (*ids[: limit - 1], end)


def _ignore_special_tokens(tokenizer: Any) -> None:
    """Make the tokenizer read special tokens in a text as ordinary characters."""
    if hasattr(tokenizer, "tokenizer"):
        tokenizer.tokenizer.split_special_tokens = True
        return
    import regex

    # The pattern of CLIP's own tokenizer begins with the names of the special tokens.
    names = "|".join(tokenizer.decoder[number] for number in tokenizer.all_special_ids)
    tokenizer.pat = regex.compile(tokenizer.pat.pattern.removeprefix(f"{names}|"), tokenizer.pat.flags)
