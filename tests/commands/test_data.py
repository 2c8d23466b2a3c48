"""Bad input through the commands `muco data`, as a user meets it: a clear error, or a counted skip."""

from __future__ import annotations

import datetime
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from muco.commands.main import app
from muco.core import Content, MucoError, Pair, Sample
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards
from tests.helpers.outside_data import bomb, image_bytes, write_files, write_jsonl, write_tar, write_zip
from tests.helpers.server import Server

TEXTS = "columns={query_text: q, target_text: a}"
PICTURES = "columns={query_text: q, query_image: p, target_text: a}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def muco(*arguments: str) -> None:
    app(["data", *arguments], standalone_mode=False)


def prepare(table: str, columns: str = TEXTS, *more: str) -> list[Sample]:
    """Run `muco data prepare pairs` and return the samples."""
    options = ["--workers", "0", "--max-skipped-share", "1", "--set", columns, *more]
    muco("prepare", "pairs", "--from", table, "--to", "shards", *options)
    reader = ShardReader("shards")
    return [reader[number] for number in range(len(reader))]


def skipped() -> dict[int, str]:
    lines = map(json.loads, Path("shards/skipped.jsonl").read_text().splitlines())
    return {line["record"]: line["reason"] for line in lines}


# Tables


def test_a_byte_order_mark_is_no_part_of_the_first_row(folder):
    line = json.dumps({"q": "x", "a": "y"})
    for name, text in (("t.jsonl", f"{line}\n{line}\n"), ("t.csv", "q,a\nx,y\nx,y\n")):
        (folder / name).write_text(text, encoding="utf-8-sig")
    write_files(folder, {"both/1.jsonl": (folder / "t.jsonl").read_bytes()})
    write_files(folder, {"both/2.csv": (folder / "t.csv").read_bytes()})
    assert len(prepare("both")) == 4


def test_a_line_that_is_too_long_is_one_row_left_out(folder, monkeypatch):
    monkeypatch.setattr("muco.io.tables._MAX_LINE_BYTES", 1000)
    write_jsonl(folder / "t.jsonl", [{"q": "x" * 5000, "a": "y"}, {"q": "x", "a": "y" * 900}])
    assert len(prepare("t.jsonl")) == 1
    assert skipped() == {0: "longer than 1,000 bytes"}


def test_a_row_with_a_value_that_is_no_text_is_skipped_by_itself(folder):
    rows: list[dict[str, Any]] = [
        {"q": "x", "a": "y"},
        {"q": float("nan"), "a": "y"},
        {"q": ["x", ["nested"]], "a": "y"},
        {"q": {"base64": "!"}, "a": "y"},
        {"q": "x"},
    ]
    write_jsonl(folder / "t.jsonl", rows)
    assert len(prepare("t.jsonl")) == 1
    assert skipped() == {
        1: "the query has neither text nor image in q",
        2: "the query is a list, not text",
        3: "the query is a dict, not text",
        4: "no positive: the target has neither text nor image in a",
    }


def test_rows_of_other_bytes_or_without_their_image_or_answer_are_left_out(folder):
    lines = [
        b'{"q": "\xff", "a": "y"}',
        b'{"q": "<|image_1|>\\nx", "a": "y"}',
        b'{"q": "x", "a": ""}',
        b'{"q": "x", ',
        b'{"q": "x", "a": "y"}',
    ]
    (folder / "t.jsonl").write_bytes(b"\n".join(lines))
    (sample,) = prepare("t.jsonl")
    assert sample.pairs[0].target.text == "y"
    reasons = ["not UTF-8", "holds <|image_1|> but no image is named", "no positive", "no JSON"]
    assert all(part in skipped()[row] for row, part in enumerate(reasons))


def test_a_date_is_no_text(folder):
    dates = pa.table({"q": pa.array([datetime.datetime(2026, 1, 1)]), "a": ["y"]})
    pq.write_table(dates, folder / "t.parquet")
    with pytest.raises(MucoError, match="q is a datetime, or holds what is neither text nor bytes"):
        prepare("t.parquet")


def test_a_struct_of_the_tables_own_is_no_image(folder):
    """Whatever its keys are called."""
    write_jsonl(folder / "t.jsonl", [{"q": "x", "p": {"base64": "!"}, "a": "y"}, {"q": "x", "a": "y"}])
    assert len(prepare("t.jsonl", PICTURES)) == 1
    assert "an image is a NoneType, not a path" in skipped()[0]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.jsonl", b"", "no record makes a sample. There is none"),
        ("t.csv", b"", "t.csv: no column q, a. Columns: none"),
        ("t.parquet", b"", "t.parquet: no Parquet file that can be read"),
        ("t.jsonl", b'{"x": 1}\n', "t.jsonl: no row has a column a, q. Columns: x"),
        ("t.csv", b"q|a\nx|y\n", "no column q, a. Columns: q|a"),
        ("t.txt", b"x", "tables end in .parquet, .arrow, .jsonl, .ndjson, .csv, .tsv"),
    ],
)
def test_a_table_of_nothing_is_reported(folder, name, data, message):
    (folder / name).write_bytes(data)
    with pytest.raises(MucoError) as caught:
        prepare(name)
    assert message in str(caught.value)


# Images


def test_names_that_lead_nowhere_are_left_out(folder):
    write_files(folder, {"a.jpg": image_bytes(1), "bomb.png": bomb(), "empty.jpg": b""})
    for name, to in {"loop.jpg": "loop.jpg", "gone.jpg": "nowhere", "passwd.jpg": "/etc/passwd"}.items():
        (folder / name).symlink_to(to)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    names = ["a.jpg", "loop.jpg", "gone.jpg", "passwd.jpg", "folder.jpg", "pipe.jpg", "x" * 300, "x/../a.jpg",
             "/etc/passwd", "a.jpg\0", "\ud800.jpg", "bomb.png", "empty.jpg"]  # fmt: skip
    write_jsonl(folder / "t.jsonl", [{"q": "x", "p": name, "a": "y"} for name in names])
    (sample,) = prepare("t.jsonl", PICTURES)
    assert sample.images[0].data == image_bytes(1)
    reasons = skipped()
    assert sorted(reasons) == list(range(1, len(names)))
    assert "no PNG, JPEG, WebP" in reasons[3]
    assert "would lie outside its folder" in reasons[7]
    assert "is not valid Unicode" in reasons[10]
    assert "decompression bomb" in reasons[11]
    assert "empty.jpg is empty" in reasons[12]


def test_members_that_would_leave_their_archive_are_no_images(folder):
    write_zip(folder / "a.zip", {"../evil.jpg": image_bytes(1), "/abs.jpg": image_bytes(2)})
    rows = [{"q": "x", "p": name, "a": "y"} for name in ("../evil.jpg", "/abs.jpg", "evil.jpg")]
    write_jsonl(folder / "t.jsonl", [*rows, {"q": "x", "a": "y"}])
    assert len(prepare("t.jsonl", PICTURES)) == 1
    assert len(skipped()) == 3


def test_a_tar_that_is_cut_short_stops_the_conversion_and_nothing_is_lost(folder):
    """The rows are not skipped one by one. With the complete tar, the conversion continues."""
    write_tar(folder / "a.tar", {f"{number}.jpg": image_bytes(number) for number in range(4)})
    whole = (folder / "a.tar").read_bytes()
    write_jsonl(folder / "t.jsonl", [{"q": "x", "p": f"{number}.jpg", "a": "y"} for number in range(4)])
    cuts = {1700: "no plain tar|end mark", 1536: "its end mark is missing", 2600: r"cut short within 1\.jpg"}
    for size, message in cuts.items():  # within a header, between files, within a file
        (folder / "a.tar").write_bytes(whole[:size])
        with pytest.raises(MucoError, match=rf"a\.tar.*({message}).*\. Download it again"):
            prepare("t.jsonl", PICTURES)
        assert not Path("shards").exists()
    (folder / "a.tar").write_bytes(whole)
    assert len(prepare("t.jsonl", PICTURES)) == 4


def test_images_are_reduced_to_a_shorter_side_and_never_enlarged(folder):
    pictures = {"wide.jpg": (150, 60), "tall.png": (50, 101), "small.jpg": (30, 20)}
    kinds = {".jpg": "JPEG", ".png": "PNG"}
    files = {name: image_bytes(1, size, kinds[name[-4:]]) for name, size in pictures.items()}
    write_files(folder, files)
    write_jsonl(folder / "t.jsonl", [{"q": "x", "p": name, "a": "y"} for name in files])
    made = prepare("t.jsonl", PICTURES, "--max-shorter-side", "40")
    assert [sample.images[0].size for sample in made] == [(100, 40), (40, 80), (30, 20)]
    assert made[2].images[0].data == files["small.jpg"]
    with Image.open(io.BytesIO(made[1].images[0].data)) as image:
        assert image.format == "JPEG"
    shutil.rmtree("shards")
    made = prepare("t.jsonl", PICTURES, "--max-shorter-side", "40", "--enlarge")
    assert [sample.images[0].size for sample in made] == [(100, 40), (40, 80), (60, 40)]


def test_a_thin_image_keeps_within_its_pixels(folder):
    write_files(folder, {"line.png": image_bytes(1, (5000, 2), "PNG")})
    write_jsonl(folder / "t.jsonl", [{"q": "x", "p": "line.png", "a": "y"}])
    (made,) = prepare("t.jsonl", PICTURES, "--max-pixels", "100")
    assert made.images[0].size == (100, 1)


# Places


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("check nowhere", "nowhere does not exist"),
        ("show nowhere", "nowhere does not exist"),
        ("check memory://there", "memory://there: check reads a folder of this machine"),
        ("check file", "file: no index.json; this is no folder of muco shards"),
        ("index nowhere", "nowhere is no folder"),
        ("index file", "file is no folder"),
        ("show good --column text", "--column text: write PART=COLUMN"),
        ("show good --column query_text=txt", "name the column of a target"),
        ("show good --column query_txt=txt", "query_txt: no such key. Did you mean"),
        ("show good --html good", "good: the page cannot be written"),
        ("show good --html file/page.html", "file/page.html: the page cannot be written"),
        ("make scenes --to file/x --set num_samples=1", "file/x: the shards cannot be written"),
        ("download pairs --from t.jsonl --to file", "file: the images cannot be written"),
        ("download pairs --from t.jsonl --to images", "no record of t.jsonl names an image by URL"),
    ],
)
def test_paths_that_do_not_fit_are_reported(folder, command, message):
    (folder / "file").touch()
    write_jsonl(folder / "t.jsonl", [{"q": "x", "a": "y"}])
    pair = Pair("t", (Content("q"),), Content("a"))
    write_shards([Sample("0", "d", (), (pair,))], folder / "good", metadata={})
    settings = ["--set", TEXTS] if "pairs" in command else []
    with pytest.raises(MucoError) as caught:
        muco(*command.split(), *settings)
    assert message in str(caught.value)


FILE_BLOCKS = "ulimit -f {}; exec "
"""No file may grow beyond so many KiB: what writes more meets what a full disk is."""


@pytest.mark.process
@pytest.mark.parametrize("command", ["prepare", "download"])
def test_a_disk_that_fills_up_is_reported(folder, command):
    with Server.running() as server:
        rows = [{"q": "x" * 900, "p": server.url(f"image/{number}"), "a": "y"} for number in range(60)]
        write_jsonl(folder / "t.jsonl", rows)
        more = {
            "prepare": f"--workers 0 --set '{TEXTS}'",
            "download": f"--allow-host 127.0.0.1 --set '{PICTURES}'",
        }
        command_line = (
            f"{sys.executable} -m muco data {command} pairs --from t.jsonl --to made {more[command]}"
        )
        done = subprocess.run(
            ["bash", "-c", FILE_BLOCKS.format(24) + command_line], capture_output=True, text=True
        )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "made: the " in done.stderr
    assert "cannot be written: " in done.stderr
    assert not list(folder.glob("made/index.json"))


@pytest.mark.parametrize("cache", ["file", "file/below"])
def test_a_cache_folder_that_cannot_be_written_is_reported(folder, monkeypatch, cache):
    monkeypatch.setenv("MUCO_CACHE", cache)
    (folder / "file").touch()
    write_zip(folder / "a.zip", {"1.jpg": image_bytes(1)})
    write_jsonl(folder / "t.jsonl", [{"q": "x", "p": "1.jpg", "a": "y"}])
    with pytest.raises(MucoError, match=r"cannot be written: .* Set \$MUCO_CACHE to another folder"):
        prepare("t.jsonl", PICTURES)


def test_a_table_that_breaks_stops_a_download_in_words(folder):
    (folder / "t.csv").write_text("q,p,a\nx,http://127.0.0.1:9/1.jpg,y\n")
    (folder / "u.csv").write_text("q,a\n")
    with pytest.raises(MucoError, match=r"u\.csv: no column p"):
        muco("download", "pairs", "--from", ".", "--to", "made", "--set", PICTURES)


def test_an_id_that_comes_again_is_named(folder):
    """Two samples of one id in a batch would be taken for each other's answers."""
    pair = Pair("t", (Content("q"),), Content("a"))
    write_shards([Sample(name, "d", (), (pair,)) for name in "abcab"], folder / "data", metadata={})
    with pytest.raises(MucoError) as caught:
        muco("check", "data")
    assert "2 problems" in str(caught.value)
    assert "000000003 has the id of shard-000000.tar:000000000" in str(caught.value)
    assert "000000004 has the id of shard-000000.tar:000000001" in str(caught.value)


def test_shards_inside_the_outside_data_are_refused_before_anything_is_written(folder):
    write_jsonl(folder / "mine/a.jsonl", [{"q": "1", "a": "2"}])
    with pytest.raises(MucoError, match="--to mine/shards lies inside --from mine; name a folder outside"):
        muco("prepare", "pairs", "--from", "mine", "--to", "mine/shards", "--set", TEXTS)
    assert [path.name for path in (folder / "mine").iterdir()] == ["a.jsonl"]
