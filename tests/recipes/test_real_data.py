"""The recipes of real data, whole, on small files in the true layouts: prepare, train, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from muco.commands.main import app
from muco.config.load import load_recipe
from muco.core import DataError
from muco.job import verify_data
from muco.model.folder import load_encoder
from muco.plugins.datasets.mmeb.suite import DATA_SETS
from muco.report.comparison import published
from muco.training.data import open_data
from tests.helpers import eval_files
from tests.helpers.outside_data import (
    captioned_rows,
    image_bytes,
    write_files,
    write_jsonl,
    write_m3t,
    write_mmeb,
    write_parquet,
)
from tests.helpers.small import LLAVA_SIZES, SMALL, SMALL_CLIP

QUICK_RUN = [
    "train.num_steps=3", "train.global_batch_size=4", "train.warmup_steps=1", "train.chunk_tokens=512",
    "train.num_workers=0", "train.precision=float32", "train.log_every=1", "backbone.dtype=float32",
]  # fmt: skip
SMALL_RUN = [*QUICK_RUN, "backbone.min_pixels=3136", "backbone.max_pixels=7056"]


def random_init(sizes: dict[str, Any]) -> list[str]:
    """Return the settings for random weights instead of pretrained ones."""
    return ["backbone.pretrained=null", f"backbone.random_init={json.dumps(sizes)}"]


RANDOM_INIT = random_init(SMALL["random_init"])


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def muco(*arguments: str) -> None:
    """Run `muco`, in this process: importing torch takes longer than the runs."""
    app(list(arguments), standalone_mode=False)


def run(recipe: str, settings: list[str]) -> Path:
    muco("run", f"recipes/{recipe}.yaml", *(part for each in settings for part in ("--set", each)))
    name = next((each.split("=")[1] for each in settings if each.startswith("name=")), recipe)
    return Path("runs") / name


CAPTIONED = ["--from", "M3T", "--set", "split=captioned", "--set", "images=MMEB-train"]


def prepare_mmeb(*arguments: str) -> None:
    muco("data", "prepare", "mmeb", "--workers", "0", *arguments)


def write_captioned(folder: Path) -> None:
    write_parquet(folder / "M3T/MMEB_train/CIRR/cirr_generated_sentence.parquet", captioned_rows(12))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "train.jsonl").read_text().splitlines()]


def test_stage_1_on_m3t_then_stage_2_on_mmeb_from_what_it_left(folder):
    write_m3t(folder / "M3T", 12)
    muco("data", "prepare", "m3t", "--from", "M3T", "--to", "data/m3t", "--workers", "0")
    first = run("m3t_qwen", [*SMALL_RUN, *RANDOM_INIT])
    assert json.loads((first / "summary.json").read_text())["pairs_seen"] == 3 * 4 * 7
    assert AutoConfig.from_pretrained(first / "model").model_type == "qwen2_vl"
    trained = load_file(first / "model/adapter.safetensors")
    assert all(weight.any() for name, weight in trained.items() if ".lora_B." in name), "nothing was learnt"

    write_mmeb(folder / "MMEB-train", 12)
    write_captioned(folder)
    prepare_mmeb(*CAPTIONED, "--to", "data/mmeb")
    with pytest.raises(DataError, match=r"evaluate\.suites\.0: mmeb: MMEB-eval: .* --local-dir MMEB"):
        run("mmeb_qwen", SMALL_RUN)
    assert not Path("runs/mmeb_qwen").exists(), "nothing was trained, and nothing is in the way"

    eval_files.write_mmeb(folder / "MMEB-eval", list(DATA_SETS), num_queries=1, zipped=True)
    second = run("mmeb_qwen", SMALL_RUN)
    summary = json.loads((second / "summary.json").read_text())
    assert (summary["steps"], summary["samples_seen"]) == (3, 12)
    assert not (second / "unreadable.jsonl").exists()
    one = load_encoder(load_recipe(str(first / "recipe.yaml")).model, first / "model").backbone
    one.merge_adapters()
    base = load_file(second / "model/model.safetensors")
    assert base.keys() == one.model.state_dict().keys()
    for name, weight in one.model.state_dict().items():
        assert torch.equal(base[name], weight), f"stage 2 did not start from stage 1's {name}"
    assert load_file(second / "model/adapter.safetensors").keys() == trained.keys()

    printed = [each.values for each in published() if each.suite == "mmeb"]
    averages = {f"mmeb/{name}" for values in printed for name in values}
    assert summary["metrics"].keys() == averages | {f"mmeb/{name}" for name in DATA_SETS}
    scores = json.loads((second / "eval/mmeb.json").read_text())["tasks"]
    mean = sum(task["score"] for task in scores.values()) / 36
    assert summary["metrics"]["mmeb/mean"] == pytest.approx(mean)
    assert "MuCo-2B" in (second / "report.html").read_text()

    prepare_mmeb("--from", "MMEB-train", "--to", "data/plain")
    overrides = ["data.mmeb.shards=data/plain", "name=plain", "evaluate.suites=[]"]
    plain = run("mmeb_qwen", [*SMALL_RUN, *RANDOM_INIT, *overrides])
    assert json.loads((plain / "summary.json").read_text())["samples_seen"] == 12


TWO_SETS = ["VOC2007", "CIRR"]


def scored(done: Path) -> set[str]:
    """Return the scores of a run whose evaluation had the files of `TWO_SETS`."""
    return set(json.loads((done / "summary.json").read_text())["metrics"])


def test_mmeb_on_two_towers(folder):
    write_mmeb(folder / "MMEB-train", 12)
    eval_files.write_mmeb(folder / "MMEB-eval", TWO_SETS, zipped=True)
    prepare_mmeb("--from", "MMEB-train", "--to", "data/mmeb_original")
    done = run("mmeb_clip", [*QUICK_RUN, *random_init(SMALL_CLIP["random_init"])])
    assert scored(done) >= {"mmeb/mean (2 of 36)", "mmeb/CIRR"}
    assert json.loads((done / "summary.json").read_text())["samples_seen"] == 12
    assert all(loss > 0 for loss in losses(done))
    assert (done / "model/open_clip_config.json").is_file()


def test_mmeb_with_captions_on_llava(folder):
    write_mmeb(folder / "MMEB-train", 12)
    write_captioned(folder)
    eval_files.write_mmeb(folder / "MMEB-eval", TWO_SETS, zipped=True)
    prepare_mmeb(*CAPTIONED, "--to", "data/mmeb")
    sizes = LLAVA_SIZES | {"family": "llava_onevision", "image_size_pixels": 28}
    done = run("mmeb_llava", [*QUICK_RUN, *random_init(sizes), "train.num_steps=2"])
    assert scored(done) >= {"mmeb/mean (2 of 36)", "mmeb/CIRR"}
    assert json.loads((done / "summary.json").read_text())["samples_seen"] == 8
    assert AutoConfig.from_pretrained(done / "model").model_type == "llava_onevision"


def test_pairs_of_ones_own(folder):
    rows = [
        {"question": f"what is in {number}?", "photo": f"{number // 2}.jpg", "answer": f"thing {number}"}
        for number in range(24)
    ]
    write_jsonl(folder / "my.jsonl", rows)
    write_files(folder, {f"{number}.jpg": image_bytes(number) for number in range(12)})
    columns = {"query_text": "question", "query_image": "photo", "target_text": "answer"}
    settings = [part for name, value in columns.items() for part in ("--set", f"columns.{name}={value}")]
    muco("data", "prepare", "pairs", "--from", "my.jsonl", "--to", "data/pairs", "--workers", "0", *settings)
    done = run("pairs", [*SMALL_RUN, *RANDOM_INIT])
    assert json.loads((done / "summary.json").read_text())["pairs_seen"] == 3 * 4 * 2


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("m3t_qwen", ["data.m3t: data/m3t is not there", "muco data download m3t --from M3T", "1 TB"]),
        ("mmeb_qwen", ["data.mmeb: data/mmeb is not there", "muco data prepare mmeb --from", "50 GB"]),
        ("mmeb_llava", ["data.mmeb: data/mmeb is not there", "muco data prepare mmeb --from", "50 GB"]),
        ("mmeb_clip", ["data.mmeb: data/mmeb_original is not there", "--to data/mmeb_original", "50 GB"]),
        ("pairs", ["data.pairs: data/pairs is not there", "muco data prepare pairs --from", "as its images"]),
    ],
)
def test_data_that_is_not_there_is_reported_with_the_command_that_gets_it(
    tmp_path, monkeypatch, recipe, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        verify_data("a run", load_recipe(recipe).data, [])
    for part in message:
        assert part in str(caught.value)


def test_all_data_that_is_missing_is_reported_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("pairs", ["data={a: {shards: x}, b: {shards: y, how_to_get: ask for it}}"])
    with pytest.raises(DataError, match=r"(?s)data\.a: x is not there.*data\.b: y is not there.*ask for it"):
        verify_data("a run", recipe.data, [])


def test_a_source_in_a_recipe_is_made_once_and_anew_when_its_files_change(tmp_path, monkeypatch):
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path / "cache"))
    write_m3t(tmp_path / "M3T", 3)
    recipe = load_recipe("pairs", [f"data={{m: {{source: {{name: m3t, path: {tmp_path / 'M3T'}}}}}}}"])
    shown: list[str] = []

    def show(items, number, what):
        shown.append(what)
        return items

    assert [len(open_data(recipe.data, show)["m"]) for _ in range(2)] == [3, 3]
    assert shown == ["writing shards"]
    write_m3t(tmp_path / "M3T", 4)
    assert len(open_data(recipe.data, show)["m"]) == 4
