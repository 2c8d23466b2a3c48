"""Tables of one's own: JSONL, CSV, TSV and Parquet, columns named by the recipe."""

from __future__ import annotations

import csv
import io

import pytest
from PIL import Image
from pydantic import ValidationError

from muco.core import DataError
from muco.plugins.datasets.pairs.source import Pairs
from muco.testing import check_source
from tests.helpers.outside_data import (
    PAIRS_COLUMNS,
    PAIRS_ROWS,
    image_bytes,
    write_files,
    write_jsonl,
    write_parquet,
    write_zip,
)

FIELDS = ("question", "photo", "answer", "wrong", "kind")


def write_csv(path, rows, dialect="excel"):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)


WRITERS = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
}


@pytest.fixture(params=WRITERS)
def table(request, tmp_path):
    write_files(tmp_path, {"a.jpg": image_bytes(1), "b.jpg": image_bytes(2)})
    WRITERS[request.param](tmp_path / f"mine.{request.param}", PAIRS_ROWS)
    return tmp_path / f"mine.{request.param}"


def source(path, columns=PAIRS_COLUMNS, **settings) -> Pairs:
    return Pairs(Pairs.Config.model_validate({"path": str(path), "columns": columns, **settings}))


def test_it_keeps_the_contract(registry, table):
    check_source(registry, "pairs", {"path": str(table), "columns": PAIRS_COLUMNS})


def test_rows_of_one_image_are_turns_of_one_sample_wherever_they_stand(table):
    made = source(table)
    assert len(made) == 3
    first, second, third = made.samples()
    assert [pair.queries[0].text for pair in first.pairs] == ["what is it?", "which colour?"]
    assert [[wrong.text for wrong in pair.negatives] for pair in first.pairs] == [["a cat", "a cow"], ["red"]]
    assert [pair.task for pair in first.pairs] == ["x", "x"]
    assert first.images[0].data == image_bytes(1)
    assert [pair.target.text for pair in second.pairs] == ["two"]
    assert third.images == ()
    assert third.pairs[0].queries[0].text == 'and this, "quoted"\nin two lines?'
    assert third.pairs[0].target.text == "Ünï"


def test_rows_can_stay_apart(table):
    assert len(source(table, group_by_image=False)) == 4


def test_wordings_instruction_and_images_in_the_table(tmp_path):
    picture = {"bytes": image_bytes(1), "path": None}
    rows = [
        {"q": ["one", "other"], "p": picture, "t": picture, "c": "a dog", "n": [image_bytes(3)]},
        {"q": ["again"], "p": picture, "t": {"bytes": image_bytes(2), "path": None}, "c": "", "n": []},
    ]
    write_parquet(tmp_path / "own.parquet", rows)
    columns = {"query_text": "q", "query_image": "p", "target_image": "t", "target_caption": "c",
               "negative_image": "n", "instruction": "Find: "}  # fmt: skip
    (sample,) = source(tmp_path / "own.parquet", columns).samples()
    assert [query.text for query in sample.pairs[0].queries] == ["Find: one", "Find: other"]
    assert sample.pairs[0].target.caption == "a dog"
    assert sample.pairs[0].negatives[0].images[0].data == image_bytes(3)
    assert sample.pairs[1].target.images[0].data == image_bytes(2)


def test_a_folder_of_tables_and_images_elsewhere(tmp_path):
    write_jsonl(tmp_path / "tables" / "1.jsonl", PAIRS_ROWS[:1])
    write_csv(tmp_path / "tables" / "2.csv", PAIRS_ROWS[1:])
    write_zip(tmp_path / "pictures" / "all.zip", {"a.jpg": image_bytes(1), "b.jpg": image_bytes(2)})
    made = source(tmp_path / "tables", images=str(tmp_path / "pictures"))
    assert [len(sample.pairs) for sample in made.samples()] == [2, 1, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "", "photo": ""}, "the query has neither text nor image"),
        ({"answer": ""}, "no positive"),
        ({"answer": True}, "the target is a bool, not text"),
        ({"question": "<|image_1|> what?", "photo": ""}, "no image is named"),
        ({"photo": 5}, "an image is a int, not a path"),
        ({"photo": "https://example.org/a.jpg"}, r"image https://example.org/a\.jpg is missing"),
    ],
)
def test_a_row_that_makes_no_sample_does_not_affect_the_next(tmp_path, row, message):
    write_files(tmp_path, {"a.jpg": image_bytes(1), "b.jpg": image_bytes(2)})
    write_jsonl(tmp_path / "mine.jsonl", [*PAIRS_ROWS[:3], PAIRS_ROWS[0] | row])
    made = source(tmp_path / "mine.jsonl")
    *others, broken = made.records()
    assert [len(made.sample(record).pairs) for record in others] == [2, 1]
    with pytest.raises(DataError, match=message):
        made.sample(broken)


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        ("jsonl", b'{"question": "\xff", "answer": "a"}\n', "not UTF-8"),
        ("jsonl", b'{"question": "\\ud800", "answer": "a"}\n', "not valid Unicode"),
        ("jsonl", b'["question"]\n', "a list instead of a JSON object"),
        ("csv", b"question,answer,photo,wrong,kind\n\xff,a,,,\n", "not valid Unicode"),
        ("csv", b"question,answer,photo,wrong,kind\nq,a\n", "more or fewer fields than the heading"),
    ],
)
def test_a_row_that_cannot_be_read_is_reported_and_the_next_one_read(tmp_path, suffix, data, message):
    full = b'{"question": "q", "answer": "a", "photo": "", "wrong": "", "kind": null}\n'
    good = {"jsonl": full, "csv": b"q,a,,,\n"}[suffix]
    write_files(tmp_path, {f"mine.{suffix}": data + good})
    made = source(tmp_path / f"mine.{suffix}")
    broken, whole = made.records()
    with pytest.raises(DataError, match=message):
        made.sample(broken)
    assert made.sample(whole).pairs[0].target.text == "a"


def test_a_parquet_row_of_other_bytes_is_reported_and_the_next_one_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    bad = pa.array([b"\xff", b"q"]).cast(pa.binary()).view(pa.binary())
    text = pa.StringArray.from_buffers(2, bad.buffers()[1], bad.buffers()[2])
    pq.write_table(pa.table({"question": text, "answer": ["a", "b"]}), tmp_path / "mine.parquet")
    made = source(tmp_path / "mine.parquet", {"query_text": "question", "target_text": "answer"})
    broken, whole = made.records()
    with pytest.raises(DataError, match="not UTF-8"):
        made.sample(broken)
    assert made.sample(whole).pairs[0].queries[0].text == "q"


def test_settings_that_name_no_pair_are_refused(tmp_path):
    with pytest.raises(ValidationError, match="name the column of a target"):
        source(tmp_path, {"query_text": "q"})
    with pytest.raises(ValidationError, match="name the column of a query"):
        source(tmp_path, {"target_text": "t"})


def test_what_is_not_there_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist\. Name your table"):
        len(source(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no table below it"):
        len(source(tmp_path))
    buffer = io.StringIO()
    write_files(tmp_path, {"mine.csv": b"question,reply\n", "readme.txt": buffer.getvalue().encode()})
    with pytest.raises(DataError, match=r"no column photo, answer, wrong, kind\. Columns: question, reply"):
        len(source(tmp_path / "mine.csv"))


FILMS = {"query_text": "question", "query_video": "film", "target_video": "answer", "seconds_column": "pace"}


def films(folder) -> list[dict]:
    """Write frames, and return rows that name them: by folder, by list, by a list written as text."""
    frames = {
        f"clips/{name}/{number:02d}.jpg": image_bytes(10 * place + number)
        for place, name in enumerate("ab")
        for number in range(3)
    }
    write_files(folder / "frames", {**frames, "clips/a/notes.txt": b"no frame"})
    listed = ["clips/b/00.jpg", "clips/b/02.jpg"]
    return [
        {"question": "what moves?", "film": "clips/a", "answer": listed, "pace": 0.5},
        {"question": "and then?", "film": "clips/a", "answer": str(listed), "pace": 0.5},
        {"question": "where?", "film": listed, "answer": "clips/a", "pace": None},
    ]


def test_videos_are_named_by_their_folder_or_frame_by_frame(tmp_path):
    write_jsonl(tmp_path / "films.jsonl", films(tmp_path))
    settings = {"images": str(tmp_path / "frames"), "columns": {**FILMS, "seconds_per_frame": 2.0}}
    made = source(tmp_path / "films.jsonl", settings.pop("columns"), **settings)
    assert Pairs.needs(made.config) == {"video", "image_targets"}
    first, second = made.samples()
    a = [image_bytes(number) for number in range(3)]
    b = [image_bytes(10 + number) for number in (0, 2)]
    assert [[frame.data for frame in each.images[0].frames] for each in (first, second)] == [a, b]
    assert [each.images[0].seconds_per_frame for each in (first, second)] == [0.5, 2.0]
    assert [pair.queries[0].text for pair in first.pairs] == ["what moves?", "and then?"]
    assert [[frame.data for frame in pair.target.images[0].frames] for pair in first.pairs] == [b, b]
    sizes = [size for _, size in made.files_of(next(made.records()))]
    assert sizes == [len(each) for each in (*a, *b, *a, *b)]


def test_a_folder_of_frames_is_found_in_an_archive(tmp_path):
    rows = films(tmp_path)
    write_jsonl(tmp_path / "films.jsonl", rows)
    packed = tmp_path / "packed"
    packed.mkdir()
    frames = tmp_path / "frames"
    files = {f"top/{path.relative_to(frames)}": path.read_bytes() for path in frames.rglob("*.*")}
    write_zip(packed / "films.zip", files)
    plain, zipped = (
        list(source(tmp_path / "films.jsonl", FILMS, images=str(place)).samples())
        for place in (tmp_path / "frames", packed)
    )
    assert plain == zipped


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"film": "clips/none"}, "no folder clips/none of images"),
        ({"film": "../clips/a"}, "outside its folder"),
        ({"film": "x" * 300}, r"no folder x+\.\.\. of images"),
        ({"film": "\ud800"}, "the video is not valid Unicode"),
        ({"film": []}, "neither text nor image"),
        ({"film": 3}, "a video is a int, not a folder"),
        ({"film": ["clips/a/00.jpg", "clips/a/09.jpg"]}, "clips/a/09.jpg is missing"),
        ({"film": "clips/a", "pace": "soon"}, "'soon' instead of the seconds"),
        ({"film": "clips/a", "pace": 0}, "0.0 seconds from frame to frame"),
    ],
)
def test_a_video_that_cannot_be_read_makes_no_sample(tmp_path, row, message):
    films(tmp_path)
    write_jsonl(tmp_path / "films.jsonl", [{"question": "", "answer": "clips/b", "pace": 1.0, **row}])
    made = source(tmp_path / "films.jsonl", FILMS, images=str(tmp_path / "frames"))
    with pytest.raises(DataError, match=message):
        made.sample(next(made.records()))


def test_one_film_at_two_paces_is_two_samples(tmp_path):
    first, second, _ = films(tmp_path)
    write_jsonl(tmp_path / "films.jsonl", [first, second | {"pace": 2.0}])
    made = source(tmp_path / "films.jsonl", FILMS, images=str(tmp_path / "frames")).samples()
    assert [sample.images[0].seconds_per_frame for sample in made] == [0.5, 2.0]


def test_a_column_that_no_row_has_is_an_error_in_jsonl_too(tmp_path):
    write_files(tmp_path, {"a.jpg": image_bytes(1), "b.jpg": image_bytes(2)})
    write_jsonl(tmp_path / "1.jsonl", PAIRS_ROWS)
    write_jsonl(tmp_path / "2.jsonl", [{"question": "no negative here?", "answer": "right"}])
    assert len(source(tmp_path)) == 4
    wrong = PAIRS_COLUMNS | {"negative_text": "wrogn"}
    with pytest.raises(DataError, match=r"no row has a column wrogn\. Columns: question, photo, answer, wr"):
        len(source(tmp_path, wrong))


def test_absolute_paths_below_the_images_are_read_and_others_say_what_to_do(tmp_path):
    write_files(tmp_path / "images", {"a.jpg": image_bytes(1)})
    rows = [{"q": "what?", "p": str(tmp_path / place / "a.jpg"), "a": "x"} for place in ("images", "other")]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    columns = {"query_text": "q", "query_image": "p", "target_text": "a"}
    made = source(tmp_path / "mine.jsonl", columns, images=str(tmp_path / "images"))
    inside, outside = made.records()
    assert made.sample(inside).images[0].data == image_bytes(1)
    with pytest.raises(DataError, match=r"outside its folder: an absolute path must be below .*set `images`"):
        made.sample(outside)


def subsets(folder, store, *, inner="images/0.png"):
    """Write two folders, each with a table of three rows and the image that all three name."""
    for number, name in enumerate(("birds", "cars")):
        data = image_bytes(number, kind="PNG")
        store(folder / name, {inner: data})
        rows = [{"question": f"{name} {turn}", "photo": inner, "answer": "yes"} for turn in range(3)]
        write_jsonl(folder / name / "train.jsonl", rows)


NEAR_COLUMNS = {"query_text": "question", "query_image": "photo", "target_text": "answer"}


@pytest.mark.parametrize(
    "store",
    [lambda folder, files: write_zip(folder / "images.zip", files), write_files],
    ids=["zip", "folder"],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_each_table_gets_the_image_nearest_to_it(tmp_path, monkeypatch, store, grouped):
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path / "cache"))
    subsets(tmp_path / "data", store)
    samples = list(source(tmp_path / "data", NEAR_COLUMNS, group_by_image=grouped).samples())
    assert len(samples) == (2 if grouped else 6)
    assert len({sample.sample_id for sample in samples}) == len(samples)
    for sample in samples:
        number = 0 if sample.pairs[0].queries[0].text.startswith("birds") else 1
        assert sample.images[0].data == image_bytes(number, kind="PNG")
    assert samples[-1].sample_id.startswith("cars/train.jsonl:")


def test_an_archive_near_the_table_wins_over_a_file_of_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path / "cache"))
    write_files(tmp_path / "data", {"images/0.png": image_bytes(7, kind="PNG")})
    subsets(tmp_path / "data", lambda folder, files: write_zip(folder / "images.zip", files))
    first, second = source(tmp_path / "data", NEAR_COLUMNS).samples()
    assert [first.images[0].data, second.images[0].data] == [image_bytes(n, kind="PNG") for n in (0, 1)]


def test_rows_of_two_tables_with_one_image_are_one_sample(tmp_path):
    write_files(tmp_path, {"images/0.png": image_bytes(0)})
    for name in ("en", "de"):
        write_jsonl(
            tmp_path / name / "train.jsonl", [{"question": name, "photo": "images/0.png", "answer": "yes"}]
        )
    (sample,) = source(tmp_path, NEAR_COLUMNS).samples()
    assert [pair.queries[0].text for pair in sample.pairs] == ["de", "en"]


def test_images_are_decoded_as_viewers_show_them_or_plainly(tmp_path):
    buffer = io.BytesIO()
    Image.new("LA", (30, 30), (0, 0)).save(buffer, "PNG")
    write_files(tmp_path, {"clear.png": buffer.getvalue()})
    write_jsonl(tmp_path / "a.jsonl", [{"question": "?", "photo": "clear.png", "answer": "yes"}])
    write_parquet(tmp_path / "b.parquet", [{"question": "?", "photo": buffer.getvalue(), "answer": "yes"}])
    for table in ("a.jsonl", "b.parquet"):
        for decoding, grey in (("faithful", 255), ("plain", 0)):
            columns = {**NEAR_COLUMNS, "image_decoding": decoding}
            (sample,) = source(tmp_path / table, columns).samples()
            assert sample.images[0].decode().getpixel((0, 0)) == (grey,) * 3
