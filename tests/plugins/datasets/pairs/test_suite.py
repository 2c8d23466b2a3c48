from __future__ import annotations

import pytest
from pydantic import ValidationError

from muco.core.errors import DataError
from muco.plugins.datasets.pairs.suite import PairsSuite
from tests.helpers.eval_files import write_images, write_lines, write_pairs
from tests.helpers.small import picture


def suite_of(folder, **settings) -> PairsSuite:
    return PairsSuite(PairsSuite.Config(data=str(folder), **settings))


def test_queries_are_searched_among_all_or_among_their_own(tmp_path):
    write_pairs(tmp_path)
    (task,) = suite_of(tmp_path).tasks()
    assert len(task.pool) == 8
    assert list(map(list, task.candidates or ())) == [list(range(8)), list(range(8)), [0, 2, 7]]
    assert task.relevant == [[0], [6, 1], [2]]
    assert (task.queries[0].text, len(task.queries[0].images)) == ("what is it?", 1)


def test_tables_may_be_csv(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "c.csv").write_text("id,text\na,red\nb,blue\n")
    (tmp_path / "q.csv").write_text("text,relevant\nwarm,\"['a', 'b']\"\ncold,b\n")
    (task,) = suite_of(tmp_path, queries="q.csv", candidates="c.csv").tasks()
    assert task.relevant == [[0, 1], [1]]
    assert task.candidates is None


PAIRS = [
    {"photo": "a.png", "caption": "a disc", "other": "b.png"},
    {"photo": "b.png", "caption": "a disc", "other": "b.png"},
    {"photo": "a.png", "caption": ["red", "a red disc"], "other": "a.png"},
    {"photo": "a.png", "caption": "a disc", "other": "a.png"},
]


def test_a_table_of_pairs_is_searched_among_its_distinct_targets(tmp_path):
    write_images(tmp_path / "pictures", ["a.png", "b.png"])
    write_lines(tmp_path / "held_out.jsonl", PAIRS)
    columns = {"query_text": "caption", "query_image": "photo", "target_image": "other"}
    (task,) = PairsSuite(
        PairsSuite.Config.model_validate(
            {
                "data": str(tmp_path / "held_out.jsonl"),
                "columns": columns,
                "images": str(tmp_path / "pictures"),
            }
        )
    ).tasks()
    assert [query.text for query in task.queries] == ["a disc", "a disc", "red"]
    assert [query.images[0].size for query in task.queries] == [(56, 56), (57, 56), (56, 56)]
    assert [target.images[0].size for target in task.pool] == [(57, 56), (56, 56)]
    assert task.relevant == [[0, 1], [0], [1]]
    assert task.candidates is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"photo": "none.png", "caption": "x"}, "held_out.jsonl: line 2: image none.png is missing below"),
        ({"photo": "a.png"}, "held_out.jsonl: line 2: no positive: the target has neither text nor image"),
    ],
)
def test_a_row_without_a_pair_is_named(tmp_path, row, message):
    write_images(tmp_path, ["a.png"])
    write_lines(tmp_path / "held_out.jsonl", [{"photo": "a.png", "caption": "x"}, row])
    columns = {"query_image": "photo", "target_text": "caption"}
    suite = PairsSuite.Config.model_validate({"data": str(tmp_path / "held_out.jsonl"), "columns": columns})
    with pytest.raises(DataError, match=message):
        PairsSuite(suite).verify_data()


def test_a_table_without_the_names_of_its_columns_is_an_error(tmp_path):
    write_lines(tmp_path / "t.jsonl", [{"title": "x", "photo": "a.png"}])
    with pytest.raises(DataError, match=r"t\.jsonl is a table of pairs: set `columns`"):
        suite_of(tmp_path / "t.jsonl").verify_data()


def test_settings_of_both_layouts_are_refused():
    columns = {"query_image": "photo", "target_text": "caption"}
    with pytest.raises(ValidationError, match="`relevant` and `columns` are for different layouts"):
        PairsSuite.Config.model_validate({"data": "x", "columns": columns, "relevant": "right", "id": "id"})


def test_an_empty_candidate_is_counted_and_scored(tmp_path):
    write_pairs(tmp_path)
    with open(tmp_path / "candidates.jsonl", "a") as file:
        file.write('{"id": "e", "text": ""}\n{"id": "f"}\n')
    (task,) = suite_of(tmp_path).tasks()
    assert len(task.pool) == 9  # equal candidates once
    assert not task.pool[8]
    assert task.warnings == ("pairs: 2 candidates have neither text nor image",)


def test_an_image_that_is_cut_short_is_named_when_it_is_decoded(tmp_path):
    """Of a candidate without text, an evaluation's error has nothing else that says which one it is."""
    write_pairs(tmp_path)
    with open(tmp_path / "candidates.jsonl", "a") as file:
        file.write('{"id": "e", "image": "cut.png"}\n')
    data = picture("red", (56, 56)).data
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (task,) = suite_of(tmp_path).tasks()
    with pytest.raises(DataError, match=r"^image cut\.png: broken image: .*truncated"):
        task.pool[8].images[0].decode()


@pytest.mark.parametrize(
    ("query", "candidate", "message"),
    [
        ({"text": "x", "relevant": "c"}, {"id": "d", "text": "d"}, "'c' is not among the candidates"),
        ({"text": "x"}, {"id": "c", "text": "c"}, "no right candidate in column 'relevant'"),
        ({"relevant": "c"}, {"id": "c", "text": "c"}, "neither text in column 'text'"),
        ({"text": ["x"], "relevant": "c"}, {"id": "c", "text": "c"}, "text is a list, not text"),
        ({"text": "\ud800", "relevant": "c"}, {"id": "c", "text": "c"}, "text is not valid Unicode"),
        ({"text": "x", "relevant": "c"}, {"text": "c"}, "no id in column 'id'"),
        ({"text": "x", "relevant": "c"}, {"id": "c", "txt": "c"}, "candidates.jsonl, line 1: neither text"),
        (
            {"text": "x", "relevant": "c", "image": "none.png"},
            {"id": "c", "text": "c"},
            "1 images are missing",
        ),
        (
            {"text": "x", "relevant": "[__import__('os')]"},
            {"id": "c", "text": "c"},
            "is not among the candidates",
        ),
        ({"text": "x", "relevant": "c", "among": ["d"]}, {"id": "c", "text": "c"}, "'d' is not among"),
    ],
)
def test_tables_that_do_not_fit_are_reported(tmp_path, query, candidate, message):
    write_lines(tmp_path / "queries.jsonl", [query])
    write_lines(tmp_path / "candidates.jsonl", [candidate])
    with pytest.raises(DataError, match=message):
        suite_of(tmp_path).verify_data()


def test_a_number_is_a_text_and_nought_too(tmp_path):
    write_lines(tmp_path / "queries.jsonl", [{"text": "how many?", "relevant": 0}])
    write_lines(tmp_path / "candidates.jsonl", [{"id": 0, "text": 0}, {"id": 1, "text": 1}])
    (task,) = suite_of(tmp_path).tasks()
    assert [content.text for content in task.pool] == ["0", "1"]
    assert task.relevant == [[0]]


def test_no_candidates_are_reported(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "candidates.jsonl").write_text("")
    with pytest.raises(DataError, match="no candidate"):
        list(suite_of(tmp_path).tasks())
    (tmp_path / "candidates.jsonl").unlink()
    with pytest.raises(DataError, match="no such file"):
        list(suite_of(tmp_path).tasks())


@pytest.mark.parametrize("part", ["text", "image", "among"])
def test_a_column_that_was_named_and_that_no_row_has_is_an_error(tmp_path, part):
    write_pairs(tmp_path)
    list(suite_of(tmp_path, **{part: part}).tasks())
    with pytest.raises(DataError, match=r"a column mispelt|neither text in column"):
        list(suite_of(tmp_path, **{part: "mispelt"}).tasks())


def test_an_id_that_is_no_text_is_an_error_in_words(tmp_path):
    (tmp_path / "candidates.jsonl").write_text('{"id": {"a": 1}, "text": "x"}\n')
    with pytest.raises(DataError, match=r"candidates.jsonl, line 1: id is a dict, not text"):
        list(suite_of(tmp_path).tasks())
