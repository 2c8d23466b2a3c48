"""The commands of docs/your_data.md, as they are written, on sixty pictures and a table."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from muco.commands.main import app

PAGE = (Path(__file__).parent.parent / "docs" / "your_data.md").read_text(encoding="utf-8")
COMMANDS = re.search(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)

DISCS = ("red", "blue", "green", "gold", "pink", "gray")
GROUNDS = ("black", "white", "navy", "tan", "teal", "olive", "maroon", "plum", "cyan", "lime")


def write_photos(folder: Path) -> None:
    (folder / "photos").mkdir()
    with open(folder / "photos.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["photo", "title"])
        for number in range(60):
            disc, ground = DISCS[number // 10], GROUNDS[number % 10]
            image = Image.new("RGB", (64, 64), ground)
            ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=disc)
            image.save(folder / "photos" / f"{number:02d}.png")
            table.writerow([f"photos/{number:02d}.png", f"a {disc} disc on {ground}"])


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Iterator[list[str]]:
    """What each command of the page prints, one after the other in a folder of photos."""
    assert COMMANDS is not None
    folder = tmp_path_factory.mktemp("own")
    write_photos(folder)
    printed: list[str] = []
    start = time.monotonic()
    with contextlib.chdir(folder):
        for line in COMMANDS[1].splitlines():
            program, *arguments = shlex.split(line)
            result = CliRunner().invoke(app, arguments if program == "muco" else ["run", *arguments])
            assert result.exit_code == 0, (line, result.output, result.exception)
            printed.append(result.output)
        assert time.monotonic() - start < 600
        yield printed


def test_the_tables_on_the_page_are_those_that_init_prints(outputs):
    shown = re.search(r"```text\n(.*?)```", PAGE, re.S)
    assert shown is not None
    lines = [" ".join(line.split()) for line in shown[1].splitlines()]
    printed = " ".join(outputs[0].split())
    assert [line for line in lines if line not in printed] == []


def test_a_text_finds_its_photo(outputs):
    nearest = re.findall(r"photos/(\d+)\.png", outputs[4])
    assert "01" in nearest
    assert Path("found.html").is_file()


def test_held_out_texts_find_their_photos_better_than_by_chance(outputs):
    scores = json.loads(Path("runs/photos/eval/pairs.json").read_text())["tasks"]["pairs"]
    assert scores["num_queries"] == 6
    assert scores["score"] > 2 * scores["chance"]
