"""Prompts are filled in, and answers are read by the form that was asked for."""

from __future__ import annotations

import json

import jsonschema
import pytest

from muco.generate.curriculum import Curriculum, InvalidAnswerError
from muco.generate.settings import load_generation
from tests.helpers.chat_server import good_pairs

KINDS = ["kinds={price: {prompt: Ask the price., max_words: 4}, defect: {prompt: Ask for one., count: 2}}"]
PAIR = {"queries": ["how?"], "answer": "so"}


@pytest.fixture(scope="module")
def own() -> Curriculum:
    return Curriculum(load_generation("m3t", KINDS))


def test_kinds_of_ones_own_are_in_the_prompt_and_name_the_turns(own):
    prompt = own.prompt(own.settings.pairs, "a {kinds} of {caption}")
    assert "- price (1 pair, answers of at most 4 words): Ask the price." in prompt
    assert "- defect (2 pairs, answers of at most 100 words): Ask for one." in prompt
    assert prompt.rstrip().endswith("a {kinds} of {caption}")
    assert own.turns == [("price", "price"), ("defect_1", "defect"), ("defect_2", "defect")]


def test_pairs_come_in_the_order_of_the_turns_whatever_their_order_in_the_answer(own):
    answer = {"defect": [PAIR | {"answer": "1"}, PAIR | {"answer": "2"}], "price": [PAIR | {"answer": "0"}]}
    for text in (
        json.dumps(answer),
        f"<think>{{maybe}}</think>\n```json\n{json.dumps(answer)}\n```",
        f"Here: {json.dumps(answer)} Done.",
        json.dumps(answer).replace("how?", "how\n?"),
    ):
        caption, pairs = own.parse(text, with_caption=False)
        assert [pair.answer for pair in pairs] == ["0", "1", "2"]
        assert caption == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "no JSON object"),
        ("{no}", "no JSON: "),
        ('{"price": []}', "price: List should have at least 1 item.*defect: Field required"),
        (json.dumps({"price": [PAIR], "defect": [PAIR]}), "defect: List should have at least 2 items"),
        (json.dumps({"price": [PAIR], "defect": [PAIR] * 2, "x": 1}), "x: Extra inputs"),
        ("{" + '"a":[' * 100_000 + "]" * 100_000 + "}", "no JSON"),
    ],
)
def test_an_answer_of_another_form_says_what_is_wrong(own, text, message):
    with pytest.raises(InvalidAnswerError, match=message):
        own.parse(text, with_caption=False)


@pytest.mark.parametrize("with_caption", [False, True])
def test_the_schema_that_is_sent_accepts_what_is_read(with_caption):
    curriculum = Curriculum(load_generation("m3t"))
    sent = curriculum.response_format(with_caption=with_caption)
    assert sent is not None
    answer = good_pairs("a cup", with_caption=with_caption)
    jsonschema.validate(answer, sent["json_schema"]["schema"])
    assert len(curriculum.parse(json.dumps(answer), with_caption=with_caption)[1]) == 7
    del answer["creative"]
    with pytest.raises(jsonschema.ValidationError, match="'creative' is a required property"):
        jsonschema.validate(answer, sent["json_schema"]["schema"])


def test_the_fingerprint_changes_with_prompt_model_and_kinds():
    def fingerprint(*overrides: str) -> str:
        curriculum = Curriculum(load_generation("m3t", overrides))
        return curriculum.fingerprint(curriculum.settings.caption, curriculum.settings.pairs)

    changes = ["server.model=b", "caption.prompt=Describe.", "kinds.creative.count=2", "paraphrases=1"]
    assert len({fingerprint(), *(fingerprint(change) for change in changes)}) == 5
    assert fingerprint() == fingerprint("filters.markup=false")
