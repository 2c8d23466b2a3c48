"""Each filter alone, on texts that it drops and texts that it must not drop."""

from __future__ import annotations

import pytest

from muco.core import MucoError
from muco.generate.filters import CleanPair, agree, filtered, has_other_script, is_refusal, repeats
from muco.generate.language import check_language
from muco.generate.settings import load_generation


def reasons(*pairs: tuple[str, str], **filters: object) -> list[str]:
    """Return what happens to pairs of one image: the filter's name, or an empty text."""
    settings = load_generation("m3t", [f"filters.{name}={value}" for name, value in filters.items()])
    given = [CleanPair(f"t{n}", "local_vqa", (query,), answer) for n, (query, answer) in enumerate(pairs)]
    passed, dropped = filtered(given, settings)
    names = {each.pair.turn: each.filter for each in dropped}
    assert {pair.turn for pair in passed} == {pair.turn for pair in given} - names.keys()
    return [names.get(pair.turn, "") for pair in given]


@pytest.mark.parametrize(
    ("query", "answer", "reason"),
    [
        ("What color is the car?", "Red", ""),
        ("What color is the car?", "what color is the car", "repeats_question"),
        ("What color is the car?", "What color is the car? It is red.", "repeats_question"),
        ("Color?", "The color is red", ""),
        ("What is it?", "word " * 20, ""),
        ("What is it?", "word " * 21, "too_long"),
        ("What is it?", "```\nred\n```", "markup"),
        ("What is it?", "a <b>red</b> car", "markup"),
        ("What is it?", "3 < 4 > 2", ""),
        ("What is it?", "I'm sorry, I can't help.", "refusal"),
        ("What is it?", "As an AI, I see a car.", "refusal"),
        ("What does the sign say?", "Sorry, we are closed", ""),
        ("What is it?", "", "empty"),
    ],
)
def test_a_pair_is_dropped_for_its_own_texts(query, answer, reason):
    assert reasons((query, answer)) == [reason]


def test_the_second_of_two_near_questions_is_dropped():
    near = ("What color is the left car?", "What color is the left car there?")
    assert reasons((near[0], "Red"), (near[1], "Red")) == ["", "duplicate"]
    assert reasons((near[0], "Red"), (near[1], "Red"), max_overlap=1) == ["", ""]
    assert reasons((near[0], "Red"), ("Where is the dog?", "Red")) == ["", ""]


def test_a_script_is_asked_for_by_its_name():
    assert reasons(("Was ist das?", "Ein Würfel")) == [""]
    assert reasons(("What is it?", "куб"), script="LATIN") == ["script"]
    assert not has_other_script("12 % café", "LATIN")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Red", "It is red.", True),
        ("a red cup", "The cup", True),
        ("red", "blue", False),
        ("two dogs", "three dogs", False),
        ("on a wooden table", "a table of dark wood", False),
        ("on a wooden table near the door", "on the grass in a park", False),
        ("\N{FULLWIDTH DIGIT TWO}", "2", True),
        ("red", "", False),
        ("!", "?", True),
    ],
)
def test_answers_agree_if_most_words_of_the_shorter_one_are_in_the_other(first, second, expected):
    assert agree(first, second, 0.6) is expected
    assert agree(second, first, 0.6) is expected


def test_texts_in_another_language_are_dropped_if_they_are_long_enough():
    pytest.importorskip("py3langid")
    german = "Eine rote Tasse steht auf dem Tisch am Fenster."
    english = "A red cup stands on the table near the window."
    pairs = ("Describe it for a search.", german), ("Where is it?", english), ("What?", "Tasse")
    assert reasons(*pairs, language="en") == ["language", "", ""]
    assert reasons(*pairs, language="de") == ["", "language", ""]
    assert reasons(*pairs) == ["", "", ""]
    check_language("de")
    with pytest.raises(MucoError, match=r"'xx' is not known\. Known: .*de, .*en, "):
        check_language("xx")


def test_a_filter_that_is_off_drops_nothing():
    assert reasons(("What is it?", "**bold**"), markup="false") == [""]


def test_an_answer_of_other_words_is_no_repetition():
    assert not repeats("What color is the car?", "The car is red")
    assert is_refusal("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but no")
