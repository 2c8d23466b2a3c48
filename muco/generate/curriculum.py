"""What is asked about an image, and the form that an answer must have."""

from __future__ import annotations

import json
import re
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from muco.generate.settings import Generation, Stage, turns_of
from muco.generate.text import clean, without_thinking

_SHOWN_PROBLEMS = 5


class PairAnswer(BaseModel):
    """One pair as the model writes it."""

    model_config = ConfigDict(extra="forbid")
    queries: list[str]
    answer: str


class InvalidAnswerError(ValueError):
    """An answer does not have the form that was asked for; the message says why, for the model to read."""


class Curriculum:
    """The prompts of the stages and the schema of their answers."""

    def __init__(self, settings: Generation) -> None:
        self.settings = settings
        self.turns = turns_of(settings.kinds)
        """Name and kind of each turn."""

    def prompt(self, stage: Stage, caption: str = "", question: str = "") -> str:
        """Return a stage's prompt. Braces in caption and question are text."""
        parts = {
            "{kinds}": self._kinds_text,
            "{paraphrases}": str(self.settings.paraphrases),
            "{caption}": caption,
            "{question}": question,
        }
        return re.sub("|".join(map(re.escape, parts)), lambda match: parts[match[0]], stage.prompt)

    @cached_property
    def _kinds_text(self) -> str:
        return "\n".join(
            f"- {name} ({kind.count} {'pair' if kind.count == 1 else 'pairs'}, answers of at most "
            f"{kind.max_words} words): {kind.prompt.strip()}"
            for name, kind in self.settings.kinds.items()
        )

    def response_format(self, *, with_caption: bool) -> dict[str, Any] | None:
        """Return what a request asks of the form of its answer."""
        schema = self._schemas[with_caption]
        formats: dict[str, dict[str, Any] | None] = {
            "json_schema": {
                "type": "json_schema", "json_schema": {"name": "pairs", "strict": True, "schema": schema},
            },
            "json_object_schema": {"type": "json_object", "schema": schema},
            "json_object": {"type": "json_object"},
            "none": None,
        }  # fmt: skip
        return formats[self.settings.server.structured]

    @cached_property
    def _schemas(self) -> dict[bool, dict[str, Any]]:
        return {key: model.model_json_schema() for key, model in self._models.items()}

    @cached_property
    def _models(self) -> dict[bool, type[BaseModel]]:
        return {with_caption: self._model(with_caption=with_caption) for with_caption in (False, True)}

    def _model(self, *, with_caption: bool) -> type[BaseModel]:
        queries = Annotated[list[str], Field(min_length=1, max_length=1 + self.settings.paraphrases)]
        pair = create_model("Pair", __base__=PairAnswer, queries=(queries, ...))
        fields: dict[str, Any] = {"caption": (str, ...)} if with_caption else {}
        for name, kind in self.settings.kinds.items():
            pairs: Any = Annotated[list[pair], Field(min_length=kind.count, max_length=kind.count)]
            fields[name] = (pairs, ...)
        return create_model("Pairs", __config__=ConfigDict(extra="forbid"), **fields)

    def parse(self, text: str, *, with_caption: bool) -> tuple[str, list[PairAnswer]]:
        """Return caption, empty if not asked for, and pairs; raise InvalidAnswerError for another form."""
        values = json_in(text)
        try:
            answer: Any = self._models[with_caption].model_validate(values)
        except ValidationError as error:
            raise InvalidAnswerError("; ".join(_problems(error))) from None
        pairs = [pair for name in self.settings.kinds for pair in getattr(answer, name)]
        return (answer.caption if with_caption else ""), pairs

    def fingerprint(self, *stages: Stage) -> str:
        """Return a hash of all that the answers of some stages depend on but the image."""
        models = [stage.model or self.settings.server.model for stage in stages]
        kinds = {name: kind.model_dump(exclude={"round_trip"}) for name, kind in self.settings.kinds.items()}
        values = [models, [stage.model_dump() for stage in stages], kinds, self.settings.paraphrases]
        return blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def json_in(text: str) -> Any:
    """Return the JSON object within an answer; raise InvalidAnswerError if there is none."""
    text = without_thinking(text)
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise InvalidAnswerError("no JSON object")
    try:
        return json.loads(text[start : end + 1], strict=False)  # some grammars allow line breaks in strings
    except (ValueError, RecursionError) as error:
        raise InvalidAnswerError(f"no JSON: {str(error)[:200]}") from None


def _problems(error: ValidationError) -> list[str]:
    details = error.errors(include_url=False, include_input=False)[:_SHOWN_PROBLEMS]
    return [clean(f"{'.'.join(map(str, it['loc'])) or 'the object'}: {it['msg']}")[:300] for it in details]
