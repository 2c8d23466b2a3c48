"""`muco evaluate` as a user starts it: any model, killed at any moment, over several processes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from muco.commands.evaluate import evaluate
from muco.commands.main import app
from muco.core.errors import MucoError
from muco.evaluation.results import Coherence, Gallery, SuiteScores, TaskScore, write_results
from muco.evaluation.suite import _warnings
from muco.io.lock import locked
from muco.model.folder import save_encoder
from muco.model.source import find_model
from muco.report.page import write_report
from tests.helpers import processes
from tests.helpers.eval_files import write_lines, write_mbeir, write_mmeb, write_pairs
from tests.helpers.small import QUICK, SMALL

MODEL = [
    "--set", f"backbone.random_init={json.dumps(SMALL['random_init'])}",
    "--set", "backbone.template=bare",
    "--set", "backbone.min_pixels=3136",
    "--set", "backbone.max_pixels=3136",
    "--set", "pooler=turn_token",
    "--set", "evaluate.gallery_queries=1",
]  # fmt: skip
DATA_SETS = ["N24News", "OK-VQA", "WebQA", "VisDial", "CIRR", "MSCOCO"]


def start(folder: Path, *arguments: str, **options: Any) -> Any:
    return processes.start(folder, *arguments, start_new_session=True, **options)


def muco(*arguments: str) -> None:
    """Run `muco` in this process: importing torch takes longer than an evaluation."""
    app(list(arguments), standalone_mode=False)


def mmeb(folder: Path, to: str) -> list[str]:
    return ["evaluate", "qwen_vl", "--suite", "mmeb", "--data", str(folder / "mmeb"), "--to", to,
            "--set", "evaluate.batch_tokens=150", *MODEL]  # fmt: skip


def result(folder: Path, to: str, suite: str = "mmeb") -> dict[str, Any]:
    return json.loads((folder / to / f"eval/{suite}.json").read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_mmeb(folder / "mmeb", DATA_SETS, num_queries=16)
    write_mbeir(folder / "mbeir")
    write_pairs(folder / "pairs")
    return folder


@pytest.fixture(scope="module")
def whole(files) -> tuple[dict[str, Any], str]:
    """A result that nobody interrupted, and what was printed."""
    output = processes.ended(start(files, *mmeb(files, "whole")))
    return result(files, "whole"), output


@pytest.mark.process
def test_a_backbone_is_evaluated_by_its_name_and_a_partial_average_is_no_average(files, whole):
    found, output = whole
    assert set(found["tasks"]) == set(DATA_SETS)
    assert "mean" not in found["averages"]
    assert found["averages"] == {}
    assert found["partial_averages"]["mean"]["num_tasks"] == 6
    assert found["partial_averages"]["mean"]["of"] == 36
    assert "mmeb/mean (6 of 36)" in output
    assert "6 of 36 data sets were scored" in output
    saved = r"times fewer tokens \([\d,]+, not [\d,]+\) and \d\.\d\d times fewer image patches .* than one by"
    assert re.search(saved, output), output
    depends_on = found["depends_on"]
    assert depends_on.keys() >= {"weights", "packer", "backbone", "pooler", "versions", "suite", "store"}
    assert all(task["data"] for task in found["tasks"].values())
    page = (files / "whole/report.html").read_text()
    assert "6 of 36" in page


def test_a_folder_that_another_command_writes_is_refused(files, monkeypatch):
    monkeypatch.chdir(files)
    with locked(Path(".busy.lock")), pytest.raises(MucoError, match=r"\.busy\.lock is held by host"):
        muco(*mmeb(files, "busy"), "--quiet")
    assert not Path("busy").exists()


@pytest.mark.process
def test_killed_at_any_moment_and_started_again_gives_the_same_result(files, whole):
    moment = random.Random(time.time_ns())
    process = start(files, *mmeb(files, "killed"))
    num_rows = moment.randrange(0, 60)
    deadline = time.monotonic() + 100
    rows = 0
    while rows < num_rows and process.poll() is None and time.monotonic() < deadline:
        rows = sum(file.stat().st_size // 12 for file in files.glob("killed/eval/vectors/*/0000.rows"))
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (files / "killed/eval/mmeb.json").exists()
    processes.ended(start(files, *mmeb(files, "killed")))
    assert result(files, "killed") == whole[0]
    sizes = [
        sum(file.stat().st_size for file in files.glob(f"{name}/eval/vectors/*/*.vectors"))
        for name in ("whole", "killed")
    ]
    assert sizes[0] == sizes[1]  # nothing was stored twice


@pytest.mark.process
def test_two_processes_give_the_same_result_file_and_count_together(files, whole):
    output = processes.ended(start(files, *mmeb(files, "two"), launcher=processes.TORCHRUN))
    assert re.findall(r"were encoded in .* than one by one", output) == re.findall(
        r"were encoded in .* than one by one", whole[1]
    )
    assert (files / "two/eval/mmeb.json").read_text() == (files / "whole/eval/mmeb.json").read_text()
    written = [file.stat().st_size for file in files.glob("two/eval/vectors/*/*.rows")]
    assert len(written) == 2
    assert all(written)


def test_a_run_trains_and_evaluates_in_one_go_and_its_model_on_others(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    suites = f"evaluate.suites=[{{name: mmeb, data: {files / 'mmeb'}, datasets: [OK-VQA, WebQA]}}]"
    quick = [setting for setting in QUICK if not setting.startswith("evaluate.")]
    overrides = [part for setting in [*quick, "train.num_steps=4", suites] for part in ("--set", setting)]
    muco("run", "quickstart", *overrides)
    run = Path("runs/quickstart")
    summary = json.loads((run / "summary.json").read_text())
    assert "mmeb/mean (2 of 36)" in summary["metrics"]
    assert "mmeb/OK-VQA" in capsys.readouterr().out
    muco("run", "quickstart", *overrides)
    assert "this run is done" in capsys.readouterr().out

    # Its model on another suite: the run's folder holds both, and the model folder alone gives the same.
    muco("evaluate", "runs/quickstart", "--suite", "pairs", "--data", "pairs")
    muco("evaluate", "runs/quickstart/model", "--suite", "pairs", "--data", "pairs", "--to", "alone")
    mine, separate = result(files, "runs/quickstart", "pairs"), result(files, "alone", "pairs")
    assert mine["tasks"] == separate["tasks"]
    assert mine["depends_on"] == separate["depends_on"]
    assert set(mine["tasks"]["pairs"]["more"]) == {"recall@1", "recall@5", "recall@10", "ndcg@10", "mrr"}
    assert "pairs/mean" in json.loads((run / "summary.json").read_text())["metrics"]

    # A result is not replaced by one of other settings; that gets a label of its own.
    before = result(files, "runs/quickstart")
    same = ["evaluate", "runs/quickstart", "--suite", "mmeb", "--data", str(files / "mmeb"),
            "--set", "evaluate.suites.0.datasets=[OK-VQA,WebQA]"]  # fmt: skip
    other = [*same, "--set", "evaluate.suites.0.datasets=[OK-VQA]"]
    for refused in (other, [*same, "--set", "backbone.max_pixels=6272"]):
        with pytest.raises(MucoError, match=r"(?s)result 'mmeb' of other settings:.*--to.*label=NAME"):
            muco(*refused)
    shutil.move(run / "eval/mmeb.json", files / "moved.json")
    with pytest.raises(MucoError, match="keeps the result 'mmeb' of other settings"):
        muco(*other)  # the recipe lists the suite, though its result is not there yet
    muco(*same)
    assert result(files, "runs/quickstart") == before
    muco(*other, "--set", "evaluate.suites.0.label=ok-vqa")
    assert result(files, "runs/quickstart") == before
    assert result(files, "runs/quickstart", "ok-vqa")["suite"] == "ok-vqa"
    muco("run", "quickstart", *overrides, "--only", "evaluate")
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert {name for name in metrics if "/mean" in name} == {
        "pairs/mean", "mmeb/mean (2 of 36)", "ok-vqa/mean (1 of 36)"
    }  # fmt: skip
    assert yaml.safe_load(Path("alone/evaluation.yaml").read_text())["packer"]["name"] == "multi_turn"


def test_mbeir_from_files_to_result(files, monkeypatch):
    monkeypatch.chdir(files)
    muco("evaluate", "qwen_vl", "--suite", "mbeir", "--data", "mbeir", "--to", "beir", *MODEL,
         "--set", "evaluate.suites.0.pool=both", "--set", "evaluate.embedding_dtype=float16")  # fmt: skip
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
    ("model", "suite", "data", "message"),
    [
        ("qwen_vl", "mmbe", None, r"no suite named 'mmbe'\. Did you mean 'mmeb'\?"),
        ("qwen_lv", "scenes", None, r"no backbone of that name\. Did you mean 'qwen_vl'\?"),
        ("mmeb", "scenes", None, "neither a run folder"),
        ("qwen_vl", "mmeb", None, "data: missing; it has no default. Give it as --data"),
        ("qwen_vl", "mmeb", "none", "no files of .* --local-dir none"),
    ],
)
def test_what_cannot_be_evaluated_is_reported(files, monkeypatch, model, suite, data, message):
    monkeypatch.chdir(files)
    overrides = [each for each in MODEL if each != "--set"]
    with pytest.raises(MucoError, match=message):
        evaluate(model, suite, data=data and Path(data), overrides=overrides, to=Path("nowhere"))
    assert not Path("nowhere").exists()


@pytest.fixture(scope="module")
def model(files) -> Path:
    """A model folder as training leaves it."""
    overrides = [each for each in MODEL if each != "--set"]
    source = find_model("qwen_vl")
    loaded = source.load(source.evaluation("x", overrides=overrides).model)
    save_encoder(loaded.encoder, loaded.settings, files / "model", step=7)
    return files / "model"


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: missing, or"),
        (rewritten("model.safetensors", lambda data: data[:5000]), r"model\.safetensors: missing, or"),
        (rewritten("model.safetensors", lambda _: b""), r"model\.safetensors: missing, or"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: missing, or"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: missing, or"),
        (rewritten("muco.json", lambda data: data[:99]), r"muco\.json: cannot be read"),
        (rewritten("muco.json", lambda _: b"[]"), "which reads format 1"),
        (rewritten("muco.json", lambda data: data.replace(b'"format": 1', b'"format": 2')), "reads format 1"),
        (rewritten("muco.json", lambda data: data.replace(b'"pooler"', b'"puller"')), "pooler missing"),
        (rewritten("muco.json", lambda data: data.replace(b'"step": 7', b'"step": "7"')), "step, files or"),
        (rewritten("muco.json", lambda data: data.replace(b'"step": 7', b'"step": -1')), "step, files or"),
        (
            rewritten("muco.json", lambda data: data.replace(b'"turn_token"', b'"turm_token"')),
            "no pooler named 'turm_token'",
        ),
        (
            rewritten("muco.json", lambda data: data.replace(b'"max_pixels": ', b'"max_pixels": -')),
            "backbone.max_pixels: must be greater than 0",
        ),
        (
            rewritten("muco.json", lambda data: data.replace(b'"num_layers": 2', b'"num_layers": [2]')),
            "backbone.random_init.num_layers",
        ),
    ],
)
def test_a_damaged_model_folder_is_reported(files, model, tmp_path, damage, message):
    shutil.copytree(model, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(MucoError, match=message):
        evaluate(str(tmp_path / "model"), "pairs", data=files / "pairs", to=tmp_path / "out")


@pytest.mark.process
def test_a_damaged_folder_of_results_is_reported_and_a_whole_one_is_used_again(files, model, tmp_path):
    def again() -> Any:
        return evaluate(str(model), "pairs", data=files / "pairs", to=out, console=Console(quiet=True))

    out = tmp_path / "out"
    scores = again()
    (vectors,) = out.glob("eval/vectors/*")
    written = (vectors / "0000.rows").read_bytes()
    assert again() == scores
    assert (vectors / "0000.rows").read_bytes() == written, "nothing was encoded anew"
    whole = (out / "evaluation.yaml").read_bytes()
    for text in ("a: [b", "- a", ""):
        (out / "evaluation.yaml").write_text(text)
        with pytest.raises(MucoError, match=r"evaluation\.yaml: (cannot be read|must hold|1 problem)"):
            again()
    (out / "evaluation.yaml").write_bytes(whole)
    (vectors / "about.json").write_text("{cut")
    with pytest.raises(MucoError, match=r"about\.json: damaged.* Remove "):
        again()
    shutil.rmtree(vectors)
    vectors.write_text("in the way")
    with pytest.raises(MucoError, match="embeddings cannot be written"):
        again()
    vectors.unlink()
    assert again() == scores
    (out / "eval/pairs.json").write_text('{"format": 1')
    with pytest.raises(MucoError, match=r"pairs\.json: not JSON"):
        write_report(out)


def test_results_of_two_models_never_lie_in_one_folder(files, model, tmp_path):
    """Of one architecture, and of the same name."""
    for name in ("a", "b"):
        shutil.copytree(model, tmp_path / name / "model")
    about = tmp_path / "b/model/muco.json"
    about.write_text(about.read_text().replace('"step": 7', '"step": 8'))

    def score(name: str, to: str) -> Any:
        folder, console = str(tmp_path / name / "model"), Console(quiet=True)
        return evaluate(folder, "pairs", data=files / "pairs", to=tmp_path / to, console=console)

    (tmp_path / "results").mkdir()
    (tmp_path / f"results/.evaluation.yaml.0a1b2c3d-1-{'0' * 32}.partial").write_text("name: a")
    score("a", "results")  # into what a killed process left
    with pytest.raises(MucoError, match=r"results of other weights \(pairs\).*--to"):
        score("b", "results")
    (tmp_path / "a/recipe.yaml").write_text("name: a\n")
    with pytest.raises(MucoError, match=r"a is a run, with results of its own model.*--to"):
        score("b", "a")
    assert not (tmp_path / "a/eval").exists()
    assert score("a", "a") == score("a", "results")


def test_a_result_that_the_disk_does_not_take_is_reported(tmp_path):
    (tmp_path / "pairs.json").mkdir()
    scores = SuiteScores(1, "pairs", {}, {}, {}, Coherence(None, 0, 0), (), {})
    with pytest.raises(MucoError, match=r"pairs\.json: the result cannot be written"):
        write_results(tmp_path, scores, Gallery(1, "pairs", ()))


def test_texts_that_were_cut_are_reported(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").mkdir()
    long = "a red disc " * 90
    write_lines(
        tmp_path / "pairs/candidates.jsonl", [{"id": 0, "text": "a disc"}, {"id": 1, "text": f"b {long}"}]
    )
    write_lines(tmp_path / "pairs/queries.jsonl", [{"text": long, "relevant": 1}])
    clip = ["--set", "backbone.random_init={}", "--set", "backbone.truncate=true"]
    muco("evaluate", "clip", "--suite", "pairs", "--data", "pairs", *clip)
    assert "of 3 encoded contents 2 have a text longer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("score", "chance", "is_warned"),
    [(1.0, 1.0, True), (0.1, 0.1, True), (0.14, 0.1, True), (0.15, 0.1, False), (0.7, 0.6, True),
     (0.9, 0.6, False)],
)  # fmt: skip
def test_a_score_at_or_near_chance_is_warned_of(score, chance, is_warned):
    """One candidate is a chance of 1, and no result."""
    task = TaskScore("vqa", "precision@1", score, 9, 1, chance, 0.0, (), {}, True, "x")
    assert bool(_warnings({"t": task}, {})) == is_warned


def test_a_run_folder_whose_files_are_not_a_runs_is_reported(files, model, tmp_path):
    shutil.copytree(model, tmp_path / "run/model")
    for text in ("- a", "", "name: x\nevaluate: [1]"):
        (tmp_path / "run/recipe.yaml").write_text(text)
        with pytest.raises(MucoError, match=r"recipe\.yaml: (must hold|`evaluate` must be) a mapping"):
            evaluate(str(tmp_path / "run"), "pairs", data=files / "pairs")
