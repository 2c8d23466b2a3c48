"""The steps from one image to its pairs, as generators: they yield requests and are sent the answers.

They ask nothing themselves and depend on the answers alone. The requests of a run and the table that is
written at its end follow the same steps, so a run that was killed gives the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from muco.core.errors import DataError
from muco.generate.curriculum import Curriculum, InvalidAnswerError, PairAnswer
from muco.generate.filters import CleanPair, Dropped, agree, filtered, is_refusal
from muco.generate.inputs import Item
from muco.generate.requests import Answer, Body, ImageRef, Request
from muco.generate.settings import Stage
from muco.generate.text import clean, one_line, without_thinking

T = TypeVar("T")
Asking = Generator[Request, Answer, T]
"""Yields requests, is sent the answer of each, and returns a result."""
_REPAIR = "This is not the JSON that was asked for: {error}. Answer again, with the whole JSON object only."


@dataclass
class Usage:
    """What the answers of one image took."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0

    def add(self, answer: Answer) -> None:
        """Add one answer."""
        self.requests += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.retries += answer.retries


@dataclass(frozen=True)
class Parsed:
    """The pairs of an image as the model wrote them, before the filters."""

    caption: str
    pairs: list[PairAnswer]
    usage: Usage
    repaired: bool


@dataclass(frozen=True)
class Generated:
    """The pairs of an image."""

    caption: str
    pairs: list[CleanPair]
    dropped: list[Dropped]
    usage: Usage
    repaired: bool


@dataclass(frozen=True)
class Skipped:
    """An image without pairs."""

    reason: str
    """Its name in the counts."""
    detail: str
    usage: Usage = field(default_factory=Usage)
    dropped: list[Dropped] = field(default_factory=list)


def follow(steps: Asking[T], lookup: Callable[[bytes], Answer | None]) -> T | Request:
    """Return the result of an image's steps, or their first request for which `lookup` has no answer."""
    try:
        request = next(steps)
        while (answer := lookup(request.key)) is not None:
            request = steps.send(answer)
    except StopIteration as end:
        return end.value
    return request


class Steps:
    """The steps of all images."""

    def __init__(self, curriculum: Curriculum, image_size: Callable[[str], int], *, one_stage: bool) -> None:
        self.curriculum = curriculum
        self.settings = curriculum.settings
        self._image_size = image_size
        self.one_stage = one_stage

    def requests(self, item: Item) -> Asking[object]:
        """Yield all requests of an image. The result may lack the filters."""
        return self.result(item) if self.settings.filters.round_trip else self._parsed(item)

    def result(self, item: Item) -> Asking[Generated | Skipped]:
        """Yield all requests of an image and return what the answers give."""
        parsed = yield from self._parsed(item)
        if isinstance(parsed, Skipped):
            return parsed
        result = self._filtered(parsed)
        if self.settings.filters.round_trip and isinstance(result, Generated):
            return (yield from self._checked(item, result))
        return result

    def _image(self, item: Item) -> ImageRef | Skipped:
        try:
            by_url = self.settings.images.send == "url"
            return ImageRef(item.image, 0 if by_url else self._image_size(item.image))
        except DataError as error:
            return Skipped("image", str(error))

    def _parsed(self, item: Item) -> Asking[Parsed | Skipped]:
        usage = Usage()
        if item.caption:
            return (yield from self._pairs(clean(item.caption), None, usage))
        image = self._image(item)
        if isinstance(image, Skipped):
            return image
        if self.one_stage:
            return (yield from self._pairs("", image, usage))
        stage = self.settings.caption
        answer = yield Request("caption", self._body(stage, self.curriculum.prompt(stage)), image)
        usage.add(answer)
        caption = clean(without_thinking(answer.text))
        if problem := _problem(answer):
            return Skipped(f"caption_{problem}", caption or answer.refusal, usage)
        return (yield from self._pairs(caption, None, usage))

    def _pairs(self, caption: str, image: ImageRef | None, usage: Usage) -> Asking[Parsed | Skipped]:
        """Ask for pairs; an answer of another form is shown its error and asked once more."""
        stage = self.settings.one_stage if self.one_stage and not caption else self.settings.pairs
        with_caption = image is not None
        body = self._body(stage, self.curriculum.prompt(stage, caption))
        response_format = self.curriculum.response_format(with_caption=with_caption)
        if response_format:
            body["response_format"] = response_format
        problem = ""
        for name in ("pairs", "repair"):
            answer = yield Request(name, body, image)
            usage.add(answer)
            if problem := _problem(answer):
                return Skipped(problem, answer.refusal or clean(answer.text)[:500], usage)
            try:
                own, pairs = self.curriculum.parse(answer.text, with_caption=with_caption)
            except InvalidAnswerError as error:
                body = _repair_body(body, answer, error)
                problem = str(error)
                continue
            return Parsed(clean(own) if with_caption else caption, pairs, usage, repaired=name == "repair")
        return Skipped("invalid", problem, usage)

    def _filtered(self, parsed: Parsed) -> Generated | Skipped:
        turns = zip(self.curriculum.turns, parsed.pairs, strict=True)
        pairs = [_clean_pair(turn, kind, answer) for (turn, kind), answer in turns]
        passed, dropped = filtered(pairs, self.settings)
        return self._with_enough(Generated(parsed.caption, passed, dropped, parsed.usage, parsed.repaired))

    def _with_enough(self, result: Generated) -> Generated | Skipped:
        if len(result.pairs) >= self.settings.filters.min_pairs:
            return result
        reasons = ", ".join(f"{each.pair.turn}: {each.filter}" for each in result.dropped)
        return Skipped("too_few_pairs", reasons, result.usage, result.dropped)

    def _checked(self, item: Item, result: Generated) -> Asking[Generated | Skipped]:
        """Ask each question about the image again; drop the pairs whose two answers disagree."""
        stage, image = self.settings.round_trip, self._image(item)
        assert stage is not None, "the settings are validated"
        if isinstance(image, Skipped):
            return image
        passed, dropped = [], list(result.dropped)
        for pair in result.pairs:
            if not self.settings.kinds[pair.kind].round_trip:
                passed.append(pair)
                continue
            body = self._body(stage, self.curriculum.prompt(stage, question=pair.queries[0]))
            answer = yield Request("round_trip", body, image)
            result.usage.add(answer)
            second = "" if _problem(answer) else one_line(without_thinking(answer.text))
            if agree(pair.answer, second, self.settings.filters.min_agreement):
                passed.append(pair)
            else:
                dropped.append(Dropped("round_trip", pair, f"second answer: {second}"))
        return self._with_enough(replace(result, pairs=passed, dropped=dropped))

    def _body(self, stage: Stage, prompt: str) -> Body:
        return {
            "model": stage.model or self.settings.server.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": stage.temperature,
            "max_tokens": stage.max_tokens,
            **stage.extra_body,
        }


def _clean_pair(turn: str, kind: str, answer: PairAnswer) -> CleanPair:
    queries = dict.fromkeys(filter(None, map(one_line, answer.queries)))
    return CleanPair(turn, kind, tuple(queries), one_line(answer.answer))


def _problem(answer: Answer) -> str:
    """Return why an answer cannot be used, whatever its form; empty if it may be."""
    is_json = "{" in answer.text
    if answer.refusal or answer.finish == "content_filter" or (not is_json and is_refusal(answer.text)):
        return "refused"
    if answer.finish == "length":
        return "cut_off"
    return "" if answer.text.strip() else "empty"


def _repair_body(body: Body, answer: Answer, error: InvalidAnswerError) -> Body:
    messages = [
        *body["messages"],
        {"role": "assistant", "content": answer.text},
        {"role": "user", "content": _REPAIR.format(error=error)},
    ]
    return {**body, "messages": messages}
