"""The settings of `muco data generate`, which a YAML file holds: server, prompts, kinds of pairs, filters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from muco.config.load import read_recipe, validate_settings
from muco.core.component import ComponentConfig

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
_CAPTION = "{caption}"


class Server(ComponentConfig):
    """The server that is asked."""

    base_url: str = "http://localhost:8000/v1"
    """The address of an OpenAI-compatible server, up to and with `/v1`."""
    model: str | None = None
    """The model of the stages that name none; for captions it must see images."""
    key_variable: str | None = None
    """The environment variable that holds the key; `null` sends none."""
    structured: Literal["json_schema", "json_object_schema", "json_object", "none"] = "json_schema"
    """How JSON is asked for: by its schema (two forms), as any JSON object, or by the prompt alone."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 32
    """Requests at a time."""
    max_retries: Annotated[int, Field(ge=0)] = 8
    """Further tries of a request on status 408, 409, 429 and 5xx and on lost connections; Retry-After is
    honoured."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Limit of one try."""
    prompt_price: NotNegative = 0.0
    """Price of a million prompt tokens, for the estimated cost."""
    completion_price: NotNegative = 0.0
    """Price of a million completion tokens."""

    # Their messages do not show the value: it may be a key, or hold one.
    @field_validator("key_variable")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", value):
            raise ValueError(
                "must be the name of an environment variable in capital letters, such as OPENAI_API_KEY; "
                "the key itself is never written into a file"
            )
        return value

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            usable, parts = False, urlsplit("")
        if not usable:
            raise ValueError("must be an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("must hold no user, password or query; name the key's variable in key_variable")
        return value


class Stage(ComponentConfig):
    """One kind of request."""

    model: str | None = None
    """The model of this stage; `null`: that of `server`."""
    prompt: Annotated[str, Field(min_length=1)]
    """What is asked. `{caption}`, `{kinds}` and `{paraphrases}` are filled in."""
    temperature: NotNegative = 0.7
    max_tokens: Positive = 1500
    """Most tokens of an answer."""
    extra_body: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Further keys of the request, such as `top_p` or `chat_template_kwargs`."""


class ImageSettings(ComponentConfig):
    """How images are sent."""

    send: Literal["base64", "url"] = "base64"
    """`base64`: the image itself. `url`: its name, which must be a URL that the server can fetch."""
    max_pixels: Positive = 1_048_576
    """Larger images are reduced before they are sent."""
    quality: Annotated[int, Field(ge=1, le=95)] = 90
    """Of the JPEG that is sent."""


class PairKind(ComponentConfig):
    """One kind of pair."""

    count: Positive = 1
    """Pairs of this kind for each image."""
    prompt: Annotated[str, Field(min_length=1)]
    """What such a pair is, in the words that the model reads."""
    max_words: Positive = 100
    """Longer answers are dropped."""
    round_trip: bool = True
    """Whether `filters.round_trip` checks this kind; `false` if a question has many right answers."""


class Filters(ComponentConfig):
    """Which pairs and images are left out."""

    repeats: bool = True
    """Drop a pair whose answer repeats its question."""
    markup: bool = True
    """Drop a pair with a code fence, a heading, an HTML tag or another mark of markup."""
    refusals: bool = True
    """Drop a pair that speaks of the assistant, or refuses."""
    script: str | None = None
    """Drop a pair with letters of another script than this one: `LATIN`, `CYRILLIC`, `CJK`, `ARABIC`."""
    language: str | None = None
    """Drop a pair with a text in another language than this one: `en`, `de`, an ISO 639-1 code."""
    round_trip: bool = False
    """Ask each question about the image again and drop the pair if the answers disagree."""
    min_agreement: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Answers agree if at least this part of the words of the shorter one is in the other."""
    max_overlap: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Drop a pair whose question shares a larger part of its words with an earlier one of its image."""
    min_pairs: Positive = 1
    """Skip an image that has fewer pairs left."""


class Generation(ComponentConfig):
    """A whole file of settings."""

    server: Server = Server()
    images: ImageSettings = ImageSettings()
    caption: Stage
    """Stage 1: an image becomes a caption."""
    pairs: Stage
    """Stage 2: a caption becomes pairs."""
    one_stage: Stage
    """Both at once, for `--one-stage`: an image becomes a caption and pairs."""
    round_trip: Stage | None = None
    """The second request of a question, for `filters.round_trip`: image and question become an answer."""
    kinds: Annotated[dict[str, PairKind], Field(min_length=1)]
    """The kinds of pairs by name, in the order of the turns."""
    paraphrases: Annotated[int, Field(ge=0, le=20)] = 2
    """Further wordings of each question."""
    filters: Filters = Filters()

    @field_validator("kinds")
    @classmethod
    def _are_names(cls, kinds: dict[str, PairKind]) -> dict[str, PairKind]:
        for name in kinds:
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) or name == "caption":
                raise ValueError(f"{name!r}: write a kind's name in small letters, digits and '_'")
        names = [name for name, _ in turns_of(kinds)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two kinds give the turn {min(twice)}: rename one")
        return kinds

    @model_validator(mode="after")
    def _prompts_have_their_parts(self) -> Generation:
        if self.filters.round_trip and self.round_trip is None:
            raise ValueError("filters.round_trip needs round_trip.prompt")
        for key, stage, parts in (
            ("pairs", self.pairs, (_CAPTION, "{kinds}")),
            ("one_stage", self.one_stage, ("{kinds}",)),
            ("round_trip", self.round_trip, ("{question}",)),
        ):
            for part in parts:
                if stage is not None and part not in stage.prompt:
                    raise ValueError(f"{key}.prompt lacks {part}, which is filled in for each image")
        return self


def turns_of(kinds: dict[str, PairKind]) -> list[tuple[str, str]]:
    """Return name and kind of each turn: `local_vqa_1` and `local_vqa_2` of the kind `local_vqa`."""
    return [
        (f"{name}_{number}" if kind.count > 1 else name, name)
        for name, kind in kinds.items()
        for number in range(1, kind.count + 1)
    ]


def load_generation(name: str, overrides: Sequence[str] = ()) -> Generation:
    """Read a file of settings, or the shipped one of that name; `overrides` are `KEY=VALUE`.

    Raise MucoError, which lists all problems, if there is no such file, or it has some.
    """
    path = name if Path(name).is_file() else f"generate/{name}"
    values, lines = read_recipe(path)
    return validate_settings(Generation, values, overrides, title=path, lines=lines)
