"""A request to the server and its answer, as the journal knows them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class ImageRef:
    """An image that a request shows, not read yet."""

    name: str
    size: int
    """In bytes; 0 if the server fetches it."""


@dataclass(frozen=True)
class Request:
    """A body of chat completions, but for the image, which is put before the text of the first message."""

    stage: str
    """For messages: caption, pairs, repair."""
    body: Body
    image: ImageRef | None

    @cached_property
    def key(self) -> bytes:
        """The name of its answer in the journal: equal requests are asked once."""
        image = (self.image.name, self.image.size) if self.image else None
        text = json.dumps([self.body, image], sort_keys=True)
        return blake2b(text.encode(), digest_size=16).digest()

    def wire_body(self, url: str | None) -> Body:
        """Return the body with the image's URL, as it is sent."""
        if url is None:
            return self.body
        first, *others = self.body["messages"]
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": first["content"]},
        ]
        return {**self.body, "messages": [{**first, "content": parts}, *others]}


@dataclass(frozen=True)
class Answer:
    """What the server answered, and was paid for."""

    text: str
    refusal: str
    """The server's own mark of a refusal; empty if there is none."""
    finish: str
    """`stop`, or `length` if it was cut off."""
    prompt_tokens: int
    completion_tokens: int
    retries: int
    """Tries before it that failed."""
