"""Texts for a text tower, by open_clip's tokenizers; their special tokens stay ours."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from muco.core.errors import DataError


class TextReader:
    """Turns texts into rows of tokens, each within the tower's context."""

    def __init__(self, tokenizer: Any, *, full_context: bool, truncate: bool) -> None:
        """Take the parts.

        Args:
            tokenizer: open_clip's; special tokens in a text become ordinary characters for it.
            full_context: the tower reads padding, so that every text is padded to its context.
            truncate: cut longer texts instead of refusing them.
        """
        self.tokenizer = tokenizer
        self.inner = getattr(tokenizer, "tokenizer", None)
        """Of transformers; None where the tokenizer is CLIP's own."""
        self.padding_id = 0 if self.inner is None else self.inner.pad_token_id or 0
        self.full_context = full_context
        self.truncate = truncate
        _neutralise(tokenizer)
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._read = lru_cache(maxsize=65536)(self._tokenize)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_read"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_afresh()

    def num_tokens(self, text: str) -> int:
        """Return the tokens that the tower reads, padding among them where it reads that too.

        Raises:
            DataError: the text is too long and may not be cut.
        """
        length = len(self._read(text)[0])
        return self.tokenizer.context_length if self.full_context else length

    def is_cut(self, text: str) -> bool:
        """Say whether the text is longer than the tower's context."""
        return self._read(text)[1]

    def rows(self, texts: Iterable[str]) -> Tensor:
        """Return the texts as int64 [texts, L], padded on the right to the longest, or to the context."""
        found = [self._read(text)[0] for text in texts]
        length = self.tokenizer.context_length if self.full_context else max(map(len, found))
        return torch.tensor([(*ids, *[self.padding_id] * (length - len(ids))) for ids in found])

    def _tokenize(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Return the text's tokens, and whether it was cut."""
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
        """Return the tokens of a text with its start and end, cut to `limit` where one is given."""
        text = self.tokenizer.clean_fn(text)
        if self.inner is not None:
            cut = {"truncation": True, "max_length": limit} if limit else {}
            ids = self.inner(text, **cut)["input_ids"]
            # A few checkpoints were trained with the separator blanked out.
            blank = self.inner.sep_token_id if self.tokenizer.strip_sep_token else None
            return tuple(0 if number == blank else number for number in ids)
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        ids = (start, *self.tokenizer.encode(text), end)
        return ids if limit is None else (*ids[: limit - 1], end)


def _neutralise(tokenizer: Any) -> None:
    """Let special tokens within a text be ordinary characters."""
    if hasattr(tokenizer, "tokenizer"):
        tokenizer.tokenizer.split_special_tokens = True
        return
    import regex

    # CLIP's own tokenizer looks for them first, by a pattern that begins with their names.
    names = "|".join(tokenizer.decoder[number] for number in tokenizer.all_special_ids)
    tokenizer.pat = regex.compile(tokenizer.pat.pattern.removeprefix(f"{names}|"), tokenizer.pat.flags)
