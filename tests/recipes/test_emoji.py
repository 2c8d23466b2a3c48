"""The emoji example: its layout script on small packages in the true layout, and its recipe."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from muco.config.load import load_recipe
from muco.evaluation.suite import make_suites
from muco.run_folder import differences

SCRIPT = Path(__file__).parents[2] / "examples/emoji/prepare.py"


@pytest.fixture
def prepare(monkeypatch) -> ModuleType:
    """The script as a module."""
    spec = spec_from_file_location("emoji_prepare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "emoji_prepare", module)
    spec.loader.exec_module(module)
    return module


def write_package(folder: Path, vendor: str, num_emoji: int) -> Path:
    """Write a package with a half transparent drawing of each emoji."""
    drawings = folder / "package/img" / vendor / "64"
    drawings.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for index in range(num_emoji):
        file = f"1f60{index:x}.png"
        drawing = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        drawing.paste((255, 0, 0, 255), (32, 0, 64, 64))
        drawing.save(drawings / file)
        name = f"FACE NO-{'ABCDEFGHIJKLMNO'[index]}"
        row = {"image": file, "name": name, "short_names": [f"face_{index}"]}
        rows.append({**row, "category": "Smileys & Emotion", "subcategory": f"face-{index % 3}"})
    rows.append({**rows[0], "image": "none.png", "name": "NOT DRAWN"})
    (folder / "package/emoji.json").write_text(json.dumps(rows))
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_written_is_what_the_recipe_reads(prepare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packages = [write_package(tmp_path / vendor, vendor, 10) for vendor in ("one", "two")]
    counts = prepare.write_data(*packages, Path("emoji"), seed=0)
    assert counts == {"all": 10, "held_out": 2, "validation": 2, "test": 6}

    with Image.open("emoji/images/test/1f600.png") as image:
        assert image.mode == "RGB"
        assert (image.getpixel((0, 0)), image.getpixel((63, 0))) == ((255, 255, 255), (255, 0, 0))

    recipe = load_recipe("recipes/emoji")
    source = recipe.data["emoji"].source
    assert source is not None
    samples = list(source.make().samples())
    trained = {row["image"].removeprefix("train/") for row in read(Path("emoji/train.jsonl"))}
    queries = {
        part: {row["image"] for row in read(Path("emoji") / part / "queries.jsonl")}
        for part in ("validation", "test", "held_out_name")
    }
    assert len(samples) == len(trained) == 8
    assert all(image.startswith("test/") for images in queries.values() for image in images)
    assert queries["validation"] | queries["test"] == {f"test/{file}" for file in trained}
    assert not queries["validation"] & queries["test"]
    assert not queries["held_out_name"] & {f"test/{file}" for file in trained}
    answers = {pair.target.text for sample in samples for pair in sample.pairs}
    held_out = {row["relevant"] for row in read(Path("emoji/held_out_name/queries.jsonl"))}
    assert not answers & held_out

    suites = {suite.name: list(suite.suite.tasks()) for suite in make_suites(recipe.evaluate)}
    sizes = {label: (len(task.queries), len(task.pool)) for label, (task,) in suites.items()}
    assert sizes == {
        "validation": (2, 10),
        "test": (6, 10),
        "held_out_name": (2, 10),
        "held_out_category": (2, 1),
        "held_out_subcategory": (2, 3),
        "held_out_keyword": (1, 2),
    }


def test_the_single_turn_twin_differs_in_nothing_but_the_packer():
    multi, single = (load_recipe(f"recipes/{name}").dump() for name in ("emoji", "emoji_single_turn"))
    changed = {line.partition(":")[0].partition(".")[0] for line in differences(multi, single)}
    assert changed == {"name", "packer"}


def test_words_of_the_names_are_keywords(prepare):
    emoji = prepare.Emoji("1.png", "man with t-rex, sign", ("man with rex",), "people", "person")
    assert emoji.keywords == ["man", "rex"]


def test_the_tower_has_the_weights_of_the_file_by_position(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "ARCHITECTURE", "test_efficientnet")  # a small one of the same kind
    model = timm.create_model(prepare.ARCHITECTURE)
    weights = {
        f"other.{index}.{name}": weight for index, (name, weight) in enumerate(model.state_dict().items())
    }
    torch.save(weights, tmp_path / "lite0.pth")
    prepare.write_towers(tmp_path, tmp_path / "towers", size_pixels=64, seed=0)
    written = load_file(tmp_path / "towers/lite0/model.safetensors")
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(written[name], weight) for name, weight in model.state_dict().items())
    config = json.loads((tmp_path / "towers/lite0/config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]

    torch.save(dict(reversed(weights.items())), tmp_path / "lite0.pth")
    with pytest.raises(SystemExit, match="not the tensors"):
        prepare.write_towers(tmp_path / "lite0.pth", tmp_path / "again", size_pixels=64, seed=0)
