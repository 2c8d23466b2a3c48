"""M-BEIR in its layout: queries, a pool, instructions, a tar of images."""

from __future__ import annotations

import json

import pytest

from muco.core import DataError
from muco.plugins.datasets.mbeir.source import MBEIR
from tests.helpers.outside_data import write_jsonl, write_mbeir

QUERIES = "query/union_train/mbeir_union_up_train.jsonl"
POOL = "cand_pool/global/mbeir_union_train_cand_pool.jsonl"


@pytest.fixture
def folder(tmp_path):
    write_mbeir(tmp_path / "M-BEIR")
    return tmp_path / "M-BEIR"


def source(folder, **settings) -> MBEIR:
    return MBEIR(MBEIR.Config(path=str(folder), **settings))


def edit(path, number, **changes):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[number] |= changes
    write_jsonl(path, rows)


def test_queries_have_four_instructions_and_targets_none(folder):
    to_image, to_text, to_both = list(source(folder).samples())[:3]
    (pair,) = to_image.pairs
    assert [query.text for query in pair.queries] == [
        f"{prompt} News of day 0." for prompt in ("Identify the image.", "Display an image.",
                                                  "Provide an image.", "I want an image.")
    ]  # fmt: skip
    assert (pair.target.text, len(pair.target.images), to_image.images) == ("", 1, ())
    (pair,) = to_text.pairs
    assert pair.queries[0].text == "Find a caption."
    assert pair.target.text == "The news of day 0.", "stripped of blanks and quotes, and ended"
    assert to_text.images == to_image.pairs[0].target.images
    (pair,) = to_both.pairs
    assert pair.queries[0].text == "Retrieve a pair. What bird is this?"
    assert (pair.target.text, len(pair.target.images)) == ("Bird 0 0.", 1)
    assert (to_both.dataset, to_both.sample_id, pair.task) == ("mbeir/oven", "5:0", "task8")


def test_several_positives_are_pairs_of_one_sample(folder):
    sample = list(source(folder, max_positives=2).samples())[2]
    assert [pair.target.text for pair in sample.pairs] == ["Bird 0 0.", "Bird 0 1."]
    assert sample.pairs[0].queries == sample.pairs[1].queries


def test_hard_negatives_and_texts_as_they_are(folder):
    sample = next(source(folder, num_negatives=3, tidy_texts=False).samples())
    (pair,) = sample.pairs
    assert [wrong.text for wrong in pair.negatives] == [' "the news of day 0" ']
    assert pair.queries[0].text == "Identify the image. news of day 0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_cand_list": []}, "query 0:0: no positive"),
        ({"pos_cand_list": None}, "query 0:0: no positive"),
        ({"pos_cand_list": ["9:9"]}, "candidate 9:9 is not in .*cand_pool/global/mbeir_union_train"),
        ({"pos_cand_list": "0:0"}, "pos_cand_list is a str, not a list"),
        ({"query_txt": None}, "query 0:0: neither text nor image"),
        ({"qid": "x"}, "'x' is no id; it must be `dataset:number`"),
        ({"query_modality": "image"}, "no instruction for visualnews, image to image"),
        ({"query_img_path": "mbeir_images/gone.jpg"}, "image mbeir_images/gone.jpg is missing"),
    ],
)
def test_a_query_that_makes_no_sample_is_reported(folder, changes, message):
    edit(folder / QUERIES, 0, **changes)
    with pytest.raises(DataError, match=message):
        next(source(folder).samples())


def test_broken_lines_are_reported_and_the_others_read(folder):
    path = folder / QUERIES
    lines = path.read_bytes().splitlines()
    lines[0] = b'{"qid": "0:0", "query_txt": "\xff"}'
    lines[1] = b"{"
    path.write_bytes(b"\n".join(lines))
    made = source(folder)
    records = list(made.records())
    assert len(records) == len(made) == 9
    with pytest.raises(DataError, match="not UTF-8"):
        made.sample(records[0])
    with pytest.raises(DataError, match="no JSON"):
        made.sample(records[1])
    assert made.sample(records[2]).sample_id == "5:0"
    assert made.name_of(records[1]) == f"{QUERIES}: line 2"


def test_candidates_that_cannot_be_read_are_passed_over(folder):
    pool = (folder / POOL).read_bytes()
    broken = (b"[" * 100_000, b'{"did": "\\ud800"}', b'{"did": "\xff"}', b"[1]", b"{}")
    before = list(source(folder).samples())
    (folder / POOL).write_bytes(b"\n".join((*broken, pool)))
    assert list(source(folder).samples()) == before


def test_a_changed_pool_is_listed_anew(folder):
    before = next(source(folder).samples())
    rows = [json.loads(line) for line in (folder / POOL).read_text().splitlines()]
    write_jsonl(folder / POOL, [{"did": "1:1", "txt": "new", "img_path": None}, *rows])
    assert next(source(folder).samples()) == before


def test_what_is_not_there_is_reported_with_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"does not exist\. Fetch it with `hf download.*170 GB"):
        len(source(tmp_path / "nowhere"))


def test_training_and_test_clean_a_query_alike(folder):
    path = folder / QUERIES
    path.write_text(path.read_text().replace("news of day 0", "'news' of\\r day 0 "))
    texts = [query.text for query in next(source(folder).samples()).pairs[0].queries]
    assert texts[0] == "Identify the image. 'news' of day 0."
