"""M3T in its layout: seven turns a row, all rows in one row group."""

from __future__ import annotations

import pytest

from muco.core import DataError, MucoError
from muco.core.ids import url_name
from muco.plugins.datasets.m3t.source import M3T, TASKS
from tests.helpers.outside_data import (
    image_bytes,
    m3t_row,
    write_files,
    write_jsonl,
    write_m3t,
    write_parquet,
    write_tar,
)


@pytest.fixture
def folder(tmp_path):
    write_m3t(tmp_path / "M3T")
    return tmp_path / "M3T"


def source(folder, **settings) -> M3T:
    return M3T(M3T.Config(path=str(folder), **settings))


def test_a_row_is_one_image_and_seven_turns_in_their_order(folder):
    samples = list(source(folder).samples())
    assert len(samples) == 8
    third = samples[3]
    assert third.images[0].data == image_bytes(3)
    assert third.caption == "a dense caption of picture 3"
    assert tuple(pair.task for pair in third.pairs) == TASKS
    assert [query.text for query in third.pairs[5].queries] == [
        f"question 5 of 3, wording {wording}" for wording in range(3)
    ]
    assert [pair.target.text for pair in third.pairs] == [f"answer {turn} of 3" for turn in range(7)]
    assert not any(pair.negatives for pair in third.pairs)
    assert len({sample.group_id for sample in samples}) == 8


def test_a_text_keeps_its_last_line_break(folder):
    texts = {"pos_text": ["Ring\n"] + ["Ring"] * 6, "qry": [["<|image_1|>\nWhat?\n"]] + [["What?"]] * 6}
    write_parquet(folder / "M3T_train" / "M3T.parquet", [m3t_row(0) | texts])
    (sample,) = source(folder).samples()
    assert [pair.target.text for pair in sample.pairs[:2]] == ["Ring\n", "Ring"]
    assert [pair.queries[0].text for pair in sample.pairs[:2]] == ["What?\n", "What?"]


def test_hard_negatives_belong_to_their_turn(folder):
    sample = next(source(folder, num_negatives=1).samples())
    assert [wrong.text for pair in sample.pairs for wrong in pair.negatives] == [
        f"wrong answer {turn} of 0" for turn in range(7)
    ]


def test_images_that_were_downloaded_are_found_by_their_url(tmp_path):
    rows = [m3t_row(each) for each in range(3)]
    write_parquet(tmp_path / "M3T.parquet", rows)
    write_tar(
        tmp_path / "downloads" / "images-000000.tar",
        {url_name(row["url"]): image_bytes(each) for each, row in enumerate(rows)},
    )
    made = source(tmp_path / "M3T.parquet", image_column="url", images=str(tmp_path / "downloads"))
    assert [sample.images[0].data for sample in made.samples()] == [image_bytes(each) for each in range(3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qry": "one text"}, "qry is a str, not a list of turns; source `mmeb` reads single pairs"),
        ({"pos_text": ["a"] * 6}, "7 queries and 6 answers"),
        ({"pos_text": ["a"] * 6 + [""]}, "no positive: the answer of turn 7 is empty"),
        ({"qry": [["a"]] * 6 + [[]]}, "has no query"),
        ({"qry": [["a"]] * 6 + [[" \n", "<|image_1|>\n"]]}, "a query of turn 7 is empty"),
        ({"qry_image_path": ""}, "no image: qry_image_path is empty"),
        ({"qry_image_path": "images/gone.jpg"}, "image images/gone.jpg is missing below"),
        ({"pos_image_path": "images/000/000000.jpg"}, "pos_image_path is set"),
    ],
)
def test_a_row_that_makes_no_sample_is_reported(folder, change, message):
    write_parquet(folder / "M3T_train" / "M3T.parquet", [m3t_row(0) | change])
    with pytest.raises(DataError, match=message):
        list(source(folder).samples())


def test_a_tar_that_is_cut_short_is_reported(folder):
    write_tar(folder / "more.tar", {"images/009/a.jpg": image_bytes(1, (300, 300))})
    path = folder / "more.tar"
    path.write_bytes(path.read_bytes()[:1500])
    write_parquet(folder / "M3T_train" / "M3T.parquet", [m3t_row(0) | {"qry_image_path": "images/009/a.jpg"}])
    with pytest.raises(MucoError, match=r"more\.tar is cut short within images/009/a\.jpg"):
        list(source(folder).samples())


def test_what_is_not_there_is_reported_with_how_to_get_it(tmp_path, folder):
    with pytest.raises(DataError, match=r"does not exist\. Fetch the table with `hf download"):
        len(source(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"M3T\.parquet: no column link\. Columns: qry, pos_text"):
        list(source(folder, image_column="link").samples())
    write_files(folder, {"M3T_train/M3T.parquet": b"PAR1 is not all of it"})
    with pytest.raises(DataError, match="no Parquet file that can be read"):
        len(source(folder))


def test_parts_of_a_generated_table_are_read_in_order_with_the_names_of_their_turns(tmp_path):
    for part in (1, 2):
        row = {
            "qry": [["Price?", "How much?"], ["Defect?"]], "pos_text": ["5 euros", f"crack {part}"],
            "qry_sentence": "a cup", "qry_image_path": "cup.png", "tasks": ["price", "defect"],
        }  # fmt: skip
        write_jsonl(tmp_path / f"table-{part}-of-2.jsonl", [row])
    write_files(tmp_path, {"cup.png": image_bytes(0)})
    first, second = source(tmp_path, file="table-*.jsonl", task_column="tasks").samples()
    assert [pair.task for pair in first.pairs] == ["price", "defect"]
    assert [len(pair.queries) for pair in first.pairs] == [2, 1]
    assert second.pairs[1].target.text == "crack 2"
    with pytest.raises(DataError, match="qry_path is no list of names for 2 turns"):
        next(source(tmp_path, file="table-*.jsonl", task_column="qry_path").samples())
