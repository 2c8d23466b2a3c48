"""`muco evaluate` as a user starts it: any model, killed at any moment, over several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from muco.core.errors import MucoError
from muco.evaluate import evaluate
from tests.eval_files import write_mbeir, write_mmeb, write_pairs
from tests.small import QUICK, SMALL

MUCO = [sys.executable, "-m", "muco"]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "muco",
]
MODEL = [
    "--set", f"backbone.scratch={json.dumps(SMALL['scratch'])}",
    "--set", "backbone.template=bare",
    "--set", "backbone.min_pixels=3136",
    "--set", "backbone.max_pixels=3136",
    "--set", "pooler=turn_token",
    "--set", "evaluate.gallery_queries=1",
]  # fmt: skip
DATA_SETS = ["N24News", "OK-VQA", "WebQA", "VisDial", "CIRR", "MSCOCO"]


def start(folder: Path, *arguments: str, launcher: list[str] = MUCO) -> subprocess.Popen:
    return subprocess.Popen(
        [*launcher, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(folder: Path, *arguments: str, code: int = 0, launcher: list[str] = MUCO) -> str:
    process = start(folder, *arguments, launcher=launcher)
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, out + err
    assert code != 2 or "Traceback" not in err, err
    return " ".join((out + err).split())


def mmeb(folder: Path, to: str) -> list[str]:
    return ["evaluate", "qwen_vl", "--suite", "mmeb", "--data", str(folder / "mmeb"), "--to", to,
            "--set", "evaluate.batch_tokens=150", *MODEL]  # fmt: skip


def result(folder: Path, to: str, suite: str = "mmeb") -> dict[str, Any]:
    return json.loads((folder / to / f"eval/{suite}.json").read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_mmeb(folder / "mmeb", DATA_SETS, num_queries=40)
    write_mbeir(folder / "mbeir")
    write_pairs(folder / "pairs")
    return folder


@pytest.fixture(scope="module")
def whole(files) -> tuple[dict[str, Any], str]:
    """A result that nobody interrupted, and what was printed."""
    told = finish(files, *mmeb(files, "whole"))
    return result(files, "whole"), told


def test_a_backbone_is_evaluated_by_its_name_and_a_partial_average_is_no_average(files, whole):
    found, told = whole
    assert set(found["tasks"]) == set(DATA_SETS)
    assert "mean" not in found["averages"]
    assert found["averages"] == {}
    assert found["partial_averages"]["mean"]["num_tasks"] == 6
    assert found["partial_averages"]["mean"]["of"] == 36
    assert "mmeb/mean (6 of 36)" in told
    assert "6 of 36 data sets were scored" in told
    assert "times fewer tokens than one by one" in told
    depends_on = found["depends_on"]
    assert depends_on.keys() >= {"weights", "packer", "backbone", "pooler", "versions", "suite", "store"}
    assert all(task["data"] for task in found["tasks"].values())
    page = (files / "whole/report.html").read_text()
    assert "6 of 36" in page


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_gives_the_same_result(files, whole):
    moment = random.Random(time.time_ns())
    process = start(files, *mmeb(files, "killed"))
    wanted = moment.randrange(0, 60)
    deadline = time.monotonic() + 100
    rows = 0
    while rows < wanted and process.poll() is None and time.monotonic() < deadline:
        rows = sum(file.stat().st_size // 12 for file in files.glob("killed/eval/vectors/*/0000.rows"))
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (files / "killed/eval/mmeb.json").exists()
    finish(files, *mmeb(files, "killed"))
    assert result(files, "killed") == whole[0]
    sizes = [
        sum(file.stat().st_size for file in files.glob(f"{name}/eval/vectors/*/*.vectors"))
        for name in ("whole", "killed")
    ]
    assert sizes[0] == sizes[1]  # nothing was stored twice


@pytest.mark.slow
def test_two_processes_give_the_same_result_file(files, whole):
    finish(files, *mmeb(files, "two"), launcher=TORCHRUN)
    assert (files / "two/eval/mmeb.json").read_text() == (files / "whole/eval/mmeb.json").read_text()
    written = [file.stat().st_size for file in files.glob("two/eval/vectors/*/*.rows")]
    assert len(written) == 2
    assert all(written)


@pytest.mark.slow
def test_a_run_trains_and_evaluates_on_mmeb_files_in_one_go_and_its_model_on_others(files):
    suites = f"evaluate.suites=[{{name: mmeb, data: {files / 'mmeb'}, datasets: [OK-VQA, WebQA]}}]"
    quick = [setting for setting in QUICK if not setting.startswith("evaluate.")]
    overrides = [part for setting in [*quick, "train.num_steps=4", suites] for part in ("--set", setting)]
    told = finish(files, "run", "quickstart", *overrides)
    run = files / "runs/quickstart"
    summary = json.loads((run / "summary.json").read_text())
    assert "mmeb/mean (2 of 36)" in summary["metrics"]
    assert "mmeb/OK-VQA" in told
    finish(files, "run", "quickstart", *overrides)  # it is done

    # Its model on another suite: the run's folder holds both, and the model folder alone gives the same.
    finish(files, "evaluate", "runs/quickstart", "--suite", "pairs", "--data", "pairs")
    finish(files, "evaluate", "runs/quickstart/model", "--suite", "pairs", "--data", "pairs", "--to", "alone")
    mine, alone = result(files, "runs/quickstart", "pairs"), result(files, "alone", "pairs")
    for name, value in mine["tasks"]["pairs"]["more"].items():
        assert alone["tasks"]["pairs"]["more"][name] == pytest.approx(value, abs=1e-5)
    assert mine["depends_on"] == alone["depends_on"]
    assert mine["tasks"]["pairs"]["data"] == alone["tasks"]["pairs"]["data"]
    assert set(mine["tasks"]["pairs"]["more"]) == {"recall@1", "recall@5", "recall@10", "ndcg@10", "mrr"}
    assert "pairs/mean" in json.loads((run / "summary.json").read_text())["metrics"]
    assert yaml.safe_load((files / "alone/evaluation.yaml").read_text())["packer"]["name"] == "multi_turn"


def test_mbeir_from_files_to_result(files):
    finish(files, "evaluate", "qwen_vl", "--suite", "mbeir", "--data", "mbeir", "--to", "beir", *MODEL,
           "--set", "evaluate.suites.0.pool=both", "--set", "evaluate.store=float16")  # fmt: skip
    found = result(files, "beir", "mbeir")
    assert len(found["tasks"]) == 8
    assert found["tasks"]["oven_task6"]["metric"] == "hit@5"
    assert found["tasks"]["oven_task6"]["num_candidates"] == 6
    assert found["tasks"]["global_oven_task6"]["num_candidates"] == 25
    assert found["partial_averages"]["mean"]["of"] == 16
    assert found["partial_averages"]["global_mean"]["num_tasks"] == 4
    assert found["averages"].keys() >= {"meta_text_to_image_text"} or found["partial_averages"]["S->M"]
    assert found["depends_on"]["store"] == "float16"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("qwen_vl", "mmbe"), r"no suite named 'mmbe'\. Did you mean 'mmeb'\?"),
        (("qwen_lv", "scenes"), r"no backbone of that name\. Did you mean 'qwen_vl'\?"),
        (("mmeb", "scenes"), "neither a run folder"),
        (("qwen_vl", "mmeb"), "data: missing"),
    ],
)
def test_what_cannot_be_evaluated_is_told(files, monkeypatch, arguments, told):
    monkeypatch.chdir(files)
    with pytest.raises(MucoError, match=told):
        evaluate(*arguments)


def test_a_folder_without_data_ends_with_a_message(files):
    told = finish(files, "evaluate", "qwen_vl", "--suite", "mmeb", "--data", "none", *MODEL, code=2)
    assert "no files of" in told
