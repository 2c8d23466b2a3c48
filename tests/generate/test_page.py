"""The first commands of docs/generate.md, in the order of the page: from photos to a model and a search."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from muco.commands.main import app
from muco.data.shards.reader import ShardReader
from tests.helpers.chat_server import ChatServer
from tests.helpers.small import SMALL, picture

pytest.importorskip("openai")

PAGE = Path(__file__).parents[2] / "docs" / "generate.md"
COLOURS = ("red", "blue", "green", "black")
TINY = [
    "train.num_steps=2", "train.global_batch_size=8", "train.warmup_steps=1", "train.chunk_tokens=512",
    "train.num_workers=0", "train.precision=float32", "backbone.dtype=float32", "backbone.min_pixels=3136",
    "backbone.max_pixels=7056", "backbone.template=bare", "backbone.pretrained=null", "backbone.adapter=null",
    "backbone.freeze_vision=false",
    *(f"backbone.random_init.{key}={value}" for key, value in SMALL["random_init"].items()),
]  # fmt: skip


def test_the_commands_of_the_page_lead_from_300_pictures_and_captions_to_a_report_and_a_search(tmp_path):
    block = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)[0]
    (tmp_path / "photos").mkdir()
    captions = []
    for index in range(300):
        name, colour = f"{index:03d}.png", COLOURS[index % 4]
        (tmp_path / "photos" / name).write_bytes(picture(colour, (28 + index % 30, 28 + index // 30)).data)
        captions.append(json.dumps({"image": name, "caption": f"A {colour} shape, number {index}."}))
    (tmp_path / "captions.jsonl").write_text("\n".join(captions))
    with ChatServer.running() as server, contextlib.chdir(tmp_path):
        added = {
            "generate": [f"server.base_url={server.base_url}", "server.model=scripted"],
            "recipes/photos.yaml": TINY,
        }
        for line in block.splitlines():
            program, *words = shlex.split(line)
            assert program == "muco"
            words += ["--captions", "captions.jsonl"] if "generate" in words else []
            settings = next((extra for word, extra in added.items() if word in words), [])
            words += [word for setting in settings for word in ("--set", setting)]
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, (line, result.output, result.exception)
        sample = ShardReader("data/photos")[0]
        assert [pair.task for pair in sample.pairs][:2] == ["classification", "global_vqa_1"]
        assert len(sample.pairs) == 7
        assert "300 rows with 2,100 pairs" in Path("photos.jsonl.html").read_text()
        assert "<svg" in Path("runs/photos/report.html").read_text()
        assert "data:image/png" in Path("search.html").read_text()
