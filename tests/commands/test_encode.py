"""`muco encode` and `muco search` from the command line."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import muco
from muco.commands.main import app
from muco.core import MucoError
from muco.vectors.store import VectorStore
from tests.helpers.models import write_model
from tests.helpers.processes import ended, start
from tests.helpers.small import picture

COLOURS = ("red", "blue", "green", "black")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model", nested_dims=(8, 32))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(24):
        path = folder / f"{index % 3}" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(COLOURS[index % 4], (56 + index, 56)).data)
    return folder


def invoke(*arguments: object) -> str:
    """Return what a command prints, on one line."""
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def store(model, pictures, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "pictures.parquet"
    assert "24 vectors of 32 numbers, 24 of them new" in invoke("encode", model, pictures, "--to", path)
    return path


def test_vectors_are_those_of_the_python_api(store, model, pictures):
    opened, embedder = VectorStore.open(store), muco.load(model)
    expected = embedder.encode([pictures / str(row.image) for row in opened.rows])
    np.testing.assert_allclose(opened.vectors, expected, atol=1e-5)
    assert opened.metadata.fingerprint == embedder.info.fingerprint


def test_a_table_with_columns_instruction_and_size(model, pictures, tmp_path):
    (tmp_path / "t.csv").write_text("key,caption,file\nx,a red disc,\ny,,0/00.png\nz,both,1/01.png\n")
    columns = ("--id", "key", "--text", "caption", "--image", "file", "--images", pictures)
    output = invoke(
        "encode", model, tmp_path / "t.csv", "--to", tmp_path / "t.npy", *columns, "--instruction", "Find: ",
        "--dim", 8, "--dtype", "float16",
    )  # fmt: skip
    assert "3 vectors of 8 numbers" in output
    opened = VectorStore.open(tmp_path / "t.npy")
    image = {"image": pictures / "0/00.png"}
    both = {"text": "both", "image": pictures / "1/01.png"}
    expected = muco.load(model).encode(["a red disc", image, both], instruction="Find: ", dim=8)
    np.testing.assert_allclose(opened.vectors, expected, atol=1e-3)
    assert [row.id for row in opened.rows] == ["x", "y", "z"]


@pytest.mark.parametrize(
    "query", [["a red disc"], ["--image", "0/00.png"], ["a disc", "--image", "0/00.png"]]
)
def test_search_prints_the_nearest_and_writes_a_page(query, store, model, pictures, tmp_path):
    query = [str(pictures / each) if each.endswith(".png") else each for each in query]
    page = tmp_path / "page.html"
    output = invoke("search", store, *query, "-k", 3, "--html", page)
    item = {
        "text": query[0] if query[0] != "--image" else "",
        "image": Path(query[-1]) if len(query) > 1 else None,
    }
    hits = muco.load(model).search(store, item, 3)
    assert [f"{hit.score:.3f}" in output for hit in hits] == [True] * 3
    assert page.read_text().count('<img src="data:image/png') == 3 + (item["image"] is not None)


def test_a_long_path_stays_on_one_line(store, model, pictures, tmp_path):
    folder = tmp_path / "a" / ("long name " * 12)
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes((pictures / "0/00.png").read_bytes())
    invoke("encode", model, tmp_path / "a", "--to", tmp_path / "a.parquet")
    printed = CliRunner().invoke(app, ["search", str(tmp_path / "a.parquet"), "a red disc"]).output
    assert [line.partition("  ")[2] for line in printed.splitlines()] == ["item", str(folder / "1.png")]


def test_quiet_and_json_lines(model, pictures, tmp_path):
    assert invoke("encode", model, pictures, "--to", tmp_path / "a.parquet", "--quiet") == ""
    line = json.loads(
        invoke("encode", model, pictures, "--to", tmp_path / "b.parquet", "--log-format", "json")
    )
    assert (line["event"], "24 vectors" in line["text"]) == ("message", True)


def test_a_page_escapes_what_it_shows(model, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "<script>alert(1)</script>"}\n')
    invoke("encode", model, tmp_path / "t.jsonl", "--to", tmp_path / "t.parquet")
    invoke("search", tmp_path / "t.parquet", "<b>", "--html", tmp_path / "page.html")
    assert not {"<script", "<b>"} & set((tmp_path / "page.html").read_text().split(">"))
    assert "<script>" not in (tmp_path / "page.html").read_text()


def test_a_page_shows_images_of_an_archive(model, pictures, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "pictures"), "zip", pictures)
    (tmp_path / "t.csv").write_text("image\n0/00.png\n1/01.png\n")
    invoke("encode", model, tmp_path / "t.csv", "--to", tmp_path / "t.parquet", "--images", archive)
    invoke("search", tmp_path / "t.parquet", "a", "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count('<img src="data:image/png') == 2


def test_a_store_whose_images_are_gone_is_searched_without_them(model, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "1.png").write_bytes(picture("red", (56, 56)).data)
    invoke("encode", model, folder, "--to", tmp_path / "s.parquet")
    folder.rename(tmp_path / "moved")
    invoke("search", tmp_path / "s.parquet", "a", "--html", tmp_path / "page.html")
    assert "1.png" in (tmp_path / "page.html").read_text()
    assert "<img" not in (tmp_path / "page.html").read_text()


def test_a_store_whose_model_is_gone_asks_for_it(model, tmp_path):
    moved = shutil.copytree(model, tmp_path / "model")
    (tmp_path / "t.csv").write_text("text\na\n")
    invoke("encode", moved, tmp_path / "t.csv", "--to", tmp_path / "t.parquet")
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(MucoError, match=r"t\.parquet cannot be loaded; name it with --model"):
        invoke("search", tmp_path / "t.parquet", "a")
    assert "1.000 a" in invoke("search", tmp_path / "t.parquet", "a", "--model", tmp_path / "elsewhere")


BAD = [
    (["encode", "MODEL", "nowhere", "--to", "s.parquet"], "nowhere: no such file or folder"),
    (["encode", "nomodel", "PICTURES", "--to", "s.parquet"], "nomodel: no such folder"),
    (["encode", "MODEL", "PICTURES", "--to", "s.txt"], "ends in .parquet or .npy"),
    (["encode", "MODEL", "PICTURES", "--to", "s.parquet", "--dim", "9"], "--dim=9: .*trained for 8, 32"),
    (["search", "STORE"], "give a text, or an image"),
    (["search", "STORE", "a", "--model", "OTHER"], "vectors of another model"),
    (["search", "STORE", "--image", "nowhere.png"], "nowhere.png: No such file"),
    (["search", "nowhere.parquet", "a"], "no such file"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_reported_in_words(arguments, message, model, pictures, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = {"MODEL": model, "PICTURES": pictures, "STORE": store}
    if "OTHER" in arguments:
        known["OTHER"] = write_model(tmp_path / "other", seed=1)
    with pytest.raises(MucoError, match=message):
        invoke(*(known.get(each, each) for each in arguments))


def test_a_dtype_of_no_store_is_reported(model, pictures, tmp_path):
    to = tmp_path / "s.parquet"
    assert "Invalid value for '--dtype'" in invoke("encode", model, pictures, "--to", to, "--dtype", "int8")
    assert not to.exists()


@pytest.mark.process
def test_a_killed_command_goes_on_with_the_same_bytes(model, pictures, store, tmp_path):
    folder = tmp_path / "many"
    for number in range(30):  # 720 pictures are three parts
        (folder / f"{number:02d}").mkdir(parents=True)
        for path in pictures.rglob("*.png"):
            (folder / f"{number:02d}" / path.name).write_bytes(path.read_bytes())
    arguments = ("encode", str(model), str(folder), "--to")
    ended(start(tmp_path, *arguments, "whole.parquet"))
    parts = tmp_path / ".killed.parquet.parts"
    for number in (1, 2):
        process = start(tmp_path, *arguments, "killed.parquet")
        while process.poll() is None and len(list(parts.glob("*.npz"))) < number:
            time.sleep(0.005)
        process.kill()
        process.communicate()
    assert len(list(parts.glob("*.npz"))) in (2, 3)
    ended(start(tmp_path, *arguments, "killed.parquet"))
    digests = {
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("whole.parquet", "killed.parquet")
    }
    assert len(digests) == 1
    assert not parts.exists()
