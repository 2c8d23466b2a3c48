"""`muco init`: what it makes of tables, folders of classes and folders of `datasets`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from muco.commands.check import check
from muco.commands.init_recipe import ImageSizes, OwnRecipe
from muco.commands.main import app
from muco.config.load import find_recipe, load_recipe
from muco.core import MucoError
from muco.io.tables import rows
from tests.helpers.hub_datasets import write_dataset
from tests.helpers.small import picture

COLOURS = ("red", "blue", "green", "black", "gold", "pink")


def write_photos(folder: Path, number: int = 12) -> list[str]:
    """Write pictures that all differ; return their names."""
    folder.mkdir(parents=True)
    for index in range(number):
        (folder / f"{index}.png").write_bytes(picture(COLOURS[index % 6], (64 + index, 64)).data)
    return [f"{index}.png" for index in range(number)]


def write_table(path: Path, table: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))


def init(*arguments: object) -> str:
    """Return what `muco init` prints, on one line."""
    result = CliRunner().invoke(app, ["init", *map(str, arguments)])
    if result.exception:
        raise result.exception
    return " ".join(result.output.split())


def columns_of(recipe: str) -> dict[str, str]:
    source = load_recipe(recipe).data["pairs"].source
    assert source is not None
    return source.config.columns.parts()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_captions_find_their_photos(folder):
    names = write_photos(folder / "photos")
    write_table(
        Path("shop.jsonl"), [{"id": n, "file": name, "title": f"shoe {n}"} for n, name in enumerate(names)]
    )
    printed = init("shop.jsonl", "--machine", "cpu")
    assert columns_of("shop.yaml") == {"query_text": "title", "target_image": "file"}
    assert "12 of 12 images are there" in printed
    assert "not used id" in printed
    assert "muco-run shop.yaml --check" in printed
    recipe = load_recipe("shop.yaml")
    assert recipe.loss.config.symmetric
    assert (recipe.backbone.config.min_pixels, recipe.backbone.config.max_pixels) == (3136, 3920)
    assert check(recipe, "shop.yaml") == []


def test_no_image_is_in_both_tables_under_another_name_either(folder):
    """Two names of one picture, and rows that share a picture, stay together."""
    names = write_photos(folder / "photos", 20)
    (folder / "photos" / "copy.png").write_bytes((folder / "photos" / "0.png").read_bytes())
    table = [{"photo": f"photos/{name}", "caption": f"{name} is it"} for name in [*names, "copy.png", *names]]
    write_table(Path("t.jsonl"), table)
    init("t.jsonl", "--machine", "cpu", "--held-out", 0.3)
    parts = [
        {(folder / "photos" / row.values["photo"]).read_bytes() for row in rows(Path(f"t_{part}.jsonl"))}
        for part in ("train", "held_out")
    ]
    assert [len(part) for part in parts] == [14, 6]
    assert not parts[0] & parts[1]
    assert sum(1 for part in ("train", "held_out") for _ in rows(Path(f"t_{part}.jsonl"))) == 41


def test_the_seed_decides_what_is_held_out(folder):
    names = write_photos(folder / "photos", 20)
    write_table(Path("t.jsonl"), [{"photo": f"photos/{name}", "caption": f"{name} is it"} for name in names])
    for recipe, seed in (("a.yaml", 0), ("b.yaml", 0), ("c.yaml", 1)):
        init("t.jsonl", "--machine", "cpu", "--to", recipe, "--seed", seed)
    held_out = [Path(f"{name}_held_out.jsonl").read_bytes() for name in "abc"]
    assert held_out[0] == held_out[1] != held_out[2]


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (
            [{"photo": f"{n // 2}.png", "question": f"what {n}?", "answer": f"a {n}"} for n in range(24)],
            {"query_text": "question", "query_image": "photo", "target_text": "answer"},
        ),
        (
            [{"image": f"{n}.png", "species": COLOURS[n % 3]} for n in range(12)],
            {"query_image": "image", "target_text": "species"},
        ),
        (
            [{"image": f"{n // 3}.png", "caption": f"text {n}"} for n in range(24)],
            {"query_image": "image", "target_text": "caption"},
        ),
        (
            [{"anchor": f"q {n}", "positive": f"{n}.png", "negative": f"{11 - n}.png"} for n in range(12)],
            {"query_text": "anchor", "target_image": "positive", "negative_image": "negative"},
        ),
        (
            [{"left": f"{n}.png", "right": f"{(n + 1) % 12}.png", "n": n} for n in range(0, 12, 2)],
            {"query_image": "left", "target_image": "right"},
        ),
        (
            [{"search": f"q {n}", "title": f"t {n}", "extra": 1.5} for n in range(12)],
            {"query_text": "search", "target_text": "title"},
        ),
    ],
    ids=["vqa", "classes", "captions", "negatives", "images", "texts"],
)  # fmt: skip
def test_columns_are_guessed_from_names_and_values(folder, table, columns):
    write_photos(folder / "photos")
    write_table(Path("t.jsonl"), table)
    init("t.jsonl", "--machine", "cpu")
    assert columns_of("t.yaml") == columns


def test_options_overrule_the_guesses(folder):
    names = write_photos(folder / "photos")
    write_table(
        Path("t.jsonl"), [{"file": name, "title": f"t {name}", "note": f"n {name}"} for name in names]
    )
    init(
        "t.jsonl", "--machine", "cpu", "--query-image", "file", "--target-text", "note", "--target-image", ""
    )
    assert columns_of("t.yaml") == {"query_image": "file", "target_text": "note"}


def test_a_folder_of_classes(folder):
    for colour in COLOURS[:3]:
        write_photos(folder / "shapes" / colour, 4)
    printed = init("shapes", "--machine", "cpu", "--to", "own.yaml")
    assert columns_of("own.yaml") == {"query_image": "image", "target_text": "label"}
    assert "own_train.jsonl" in printed
    # The pictures of the folders are equal, number for number: they stay together.
    assert sum(1 for _ in rows(Path("own_held_out.jsonl"))) % 2 == 0


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_folder_of_datasets(folder, kind):
    write_dataset(folder / "hub", kind, num_rows=12)
    init("hub", "--machine", "cpu", "--to", "captions.yaml")
    assert columns_of("captions.yaml") == {"query_text": "caption", "target_image": "image"}
    init("hub", "--machine", "cpu", "--query-image", "image", "--target-text", "label")
    held_out = [row.values for row in rows(Path("hub_held_out.parquet"))]
    assert {row["label"] for row in held_out} <= {"red", "blue", "green"}
    assert held_out[0]["image"]["bytes"].startswith(b"\x89PNG")


def test_rows_without_their_image_are_left_out_and_counted(folder):
    names = write_photos(folder / "photos")
    write_table(
        Path("t.jsonl"), [{"photo": name, "caption": f"{name} is it"} for name in [*names, "none.png"]]
    )
    printed = init("t.jsonl", "--machine", "cpu")
    assert "left out 1 rows" in printed
    assert "left out t.jsonl: line 13: image none.png is missing below photos" in printed


def test_the_recipe_for_a_gpu(folder):
    names = write_photos(folder / "photos")
    write_table(Path("t.jsonl"), [{"photo": name, "caption": f"{name} is it"} for name in names])
    init("t.jsonl", "--machine", "gpu")
    recipe = load_recipe("t.yaml")
    assert recipe.backbone.config.pretrained == "Qwen/Qwen2-VL-2B-Instruct"
    assert recipe.backbone.config.adapter
    assert recipe.train.chunk_tokens == "auto"


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (
            [{"a": 1, "b": 2}] * 3,
            [],
            r"no column for the query was found.*Columns: a \(number\), b \(number\)",
        ),
        ([{"photo": "no.png", "title": "x"}] * 3, [], r"photo \(missing image\)"),
        (
            [{"q": "a", "answer": "b"}] * 3,
            ["--query-text", "qq"],
            "--query-text qq: no such column. Did you mean 'q'",
        ),
    ],
)
def test_what_cannot_be_guessed_is_said(table, options, message):
    write_table(Path("t.jsonl"), table)
    with pytest.raises(MucoError, match=message):
        init("t.jsonl", *options)


@pytest.mark.parametrize("value", ["v{0}.mp4", "frames/v{0}", ["v{0}/1.png", "v{0}/2.png"]])
def test_a_column_of_videos_is_named_and_not_taken_for_a_text(folder, value):
    for number in range(4):
        (folder / f"frames/v{number}").mkdir(parents=True)
    table = [
        {"clip": json.loads(json.dumps(value).format(number)), "title": f"clip {number}"}
        for number in range(4)
    ]
    write_table(Path("t.jsonl"), table)
    with pytest.raises(MucoError, match=r"clip \(video\).*query_video"):
        init("t.jsonl")
    write_table(Path("t.jsonl"), [row | {"answer": f"it is {row['title']}"} for row in table])
    assert "note: clip holds videos" in init("t.jsonl")
    assert columns_of("t.yaml") == {"query_text": "title", "target_text": "answer"}


def test_a_folder_of_videos_says_what_to_do(folder):
    (folder / "clips").mkdir()
    (folder / "clips/a.MP4").write_bytes(b"")
    with pytest.raises(MucoError, match=r"there are 1 videos\. .*ffmpeg"):
        init("clips")


def test_no_file_is_overwritten(folder):
    names = write_photos(folder / "photos")
    write_table(Path("t.jsonl"), [{"photo": name, "caption": f"{name} is it"} for name in names])
    Path("t_train.jsonl").write_text("mine")
    with pytest.raises(MucoError, match=r"t_train\.jsonl is there already"):
        init("t.jsonl")
    assert Path("t_train.jsonl").read_text() == "mine"


def test_the_shipped_recipe_is_what_init_writes():
    made = OwnRecipe(
        name="own_data_cpu",
        title="photos.csv",
        made_from="photos.csv",
        recipe="recipes/own_data_cpu.yaml",
        train="photos_train.jsonl",
        held_out="photos_held_out.jsonl",
        images="photos",
        columns={"query_text": "title", "target_image": "photo"},
        sizes=ImageSizes(640, 480, 0.5, 0.25),
        symmetric=True,
        num_samples=900,
        machine="cpu",
    )
    assert find_recipe("own_data_cpu").read_text() == made.text()
