"""The report page: what it says, what it refuses, and how a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, lists, tuples
from PIL import Image, ImageDraw

from muco.core.errors import MucoError
from muco.report.charts import draw, log_step_axis, step_axis, value_axis
from muco.report.formatting import duration, measured, short
from muco.report.page import write_report
from muco.run_folder import Summary

EVIL = "<script>alert(1)</script>"
TASKS = {"color": "classification", "relation": "vqa", "caption_to_image": "retrieval", "crop": "grounding"}
RECIPE = """\
name: tiny
data: {scenes: {source: {name: scenes}}}
packer: {name: multi_turn}
backbone: {name: qwen_vl}
pooler: {name: turn_token}
loss: {name: multiturn_infonce}
train: {num_steps: 600}
evaluate: {suites: [{name: scenes}]}
"""


def picture(color: str) -> str:
    image = Image.new("RGB", (56, 56), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=color)
    held = io.BytesIO()
    image.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def log_line(step: int, **changes: object) -> dict[str, object]:
    usual = {
        "loss": 3 / step,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "in_batch_accuracy": 0.4,
        "pairs_per_second": 512.0,
        "samples_per_second": 80.0,
        "tokens": 4096,
        "padding_share": 0.1,
        "wait_share": 0.0,
    }
    return {"step": step, "epoch": 0, **usual, "counts": {"masked_siblings": 123}, **changes}


def shown_query(task: str, rank: int) -> dict[str, object]:
    has_pictures = task == "caption_to_image"
    candidates = ["red", "green", "blue", "black", "gold"]
    top = [
        {
            "text": "" if has_pictures else color,
            "images": [picture(color)] if has_pictures else [],
            "score": 0.9 - position / 10,
            "right": position == rank,
        }
        for position, color in enumerate(candidates, start=1)
    ]
    return {"text": f"{task}?", "images": [] if has_pictures else [picture("red")], "rank": rank, "top": top}


def suite_scores() -> dict[str, object]:
    score = {"metric": "precision@1", "score": 0.712, "num_queries": 256, "num_candidates": 12.0}
    task = {**score, "chance": 0.083, "tied_share": 0.0, "groups": ["turns"], "more": {}}
    task |= {"in_mean": True, "data": "0123"}
    return {
        "format": 1,
        "suite": "scenes",
        "tasks": {name: {"meta_task": meta, **task} for name, meta in TASKS.items()},
        "averages": {"turns": {"score": 0.712, "chance": 0.083, "num_tasks": 4}},
        "partial_averages": {},
        "coherence": {"modality_gap": 0.61, "alignment": 0.8, "uniformity": -2.9},
        "warnings": ["task color is at chance level"],
        "depends_on": {"dtype": "float32"},
    }


def suite_gallery() -> dict[str, object]:
    tasks = [{"task": name, "queries": [shown_query(name, 1), shown_query(name, 3)]} for name in TASKS]
    tasks[0]["queries"] = [shown_query("color", 1)]
    return {"format": 1, "suite": "scenes", "tasks": tasks}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_log(folder: Path, lines: list[dict[str, object]]) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_evaluation(folder: Path) -> None:
    write_json(folder / "eval" / "scenes.json", suite_scores())
    write_json(folder / "eval" / "scenes.gallery.json", suite_gallery())


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """A run folder with nothing but its recipe."""
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def finished(started: Path) -> Path:
    write_json(started / "environment.json", {"versions": {"torch": "2.8.0"}, "device": "cpu", "x": None})
    write_log(started, [log_line(step) for step in range(10, 601, 10)])
    summary = Summary("tiny", 600, 19200, 268800, train_seconds=252.3, wall_seconds=260, metrics={})
    write_json(started / "summary.json", asdict(summary))
    write_evaluation(started)
    return started


class Parts(HTMLParser):
    """The tags and attributes of a page, and the text inside its scripts."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and data.strip():
            self.scripts.append(data)

    def links(self) -> list[str]:
        return [value for name, value in self.attributes if name in {"src", "href", "srcset", "action"}]


def test_the_error_for_a_folder_without_a_recipe_says_what_a_run_folder_is(tmp_path):
    with pytest.raises(MucoError, match=r"no recipe\.yaml.*\n.*muco-run RECIPE"):
        write_report(tmp_path)


def test_suites_that_were_scored_with_different_weights_are_reported(finished):
    for name, weights, step in (("scenes", "a", 300), ("pairs", "b", 600)):
        scores = {**suite_scores(), "suite": name, "depends_on": {"weights": weights, "step": step}}
        write_json(finished / "eval" / f"{name}.json", scores)
    message = "scored with different weights: pairs after step 600, scenes after step 300"
    assert message in write_report(finished).read_text()
    write_json(finished / "eval/pairs.json", {**scores, "depends_on": {"weights": "a", "step": 300}})
    assert message not in write_report(finished).read_text()


def test_a_finished_run_shows_its_sizes_and_its_scores_beside_chance(finished):
    path = write_report(finished)
    page = path.read_text(encoding="utf-8")
    assert path == finished / "report.html"
    for text in (
        "268,800",
        "4 min 12 s",
        "71.2",
        "scenes/turns",
        "8.6\N{MULTIPLICATION SIGN} chance (8.3)",
        "±2.8",
    ):
        assert text in page
    assert "task color is at chance level" in page


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (lambda folder: None, ["--only train", "--only evaluate"]),
        (lambda folder: write_log(folder, [log_line(10)]), ["step 10 of 600", "--only evaluate"]),
        (write_evaluation, ["--only train"]),
    ],
    ids=["recipe only", "training only", "evaluation only"],
)
def test_a_section_without_data_names_the_command_that_makes_it(started, make, missing):
    make(started)
    page = write_report(started).read_text(encoding="utf-8")
    for text in missing:
        assert text in page
    assert "muco-run runs/tiny/recipe.yaml" in page


def test_a_last_log_line_cut_short_is_left_out(started):
    write_log(started, [log_line(10), log_line(20)])
    with (started / "train.jsonl").open("a") as log:
        log.write('{"step": 30, "lo')
    assert "reached step 20 of 600" in write_report(started).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("recipe.yaml", "name: [", "not YAML"),
        ("recipe.yaml", "- a list", "recipe.yaml: not what this version"),
        ("summary.json", "{", "summary.json: cannot be read"),
        ("summary.json", "{}", "summary.json: not what this version.*name: Field required"),
        ("environment.json", "[]", "must hold a mapping"),
        ("train.jsonl", '{"step"\n{"step": 20}\n', "line 1 is not JSON"),
        ("eval/scenes.json", '{"format": 2, "suite": "scenes", "tasks": {}}', "format: Input should be 1"),
    ],
)
def test_a_broken_file_is_named(finished, name, text, message):
    (finished / name).write_text(text)
    with pytest.raises(MucoError, match=message):
        write_report(finished)


def test_a_loss_that_is_not_finite_is_a_warning_and_a_gap(started):
    write_log(started, [log_line(10), log_line(20, loss=math.nan), log_line(30)])
    page = write_report(started).read_text(encoding="utf-8")
    assert "loss is not finite: 1, the first is step 20" in page
    assert "nan" not in page.split("<table")[0].split("</style>")[1].lower()


def test_texts_of_the_data_are_escaped(finished):
    (finished / "recipe.yaml").write_text(RECIPE.replace("name: tiny", f"name: '{EVIL}'"))
    scores = suite_scores()
    scores["tasks"] = {EVIL: {**scores["tasks"]["color"], "meta_task": EVIL}}
    scores |= {"suite": EVIL, "warnings": [EVIL], "averages": {EVIL: scores["averages"]["turns"]}}
    write_json(finished / "eval" / "scenes.json", {**scores, "depends_on": {EVIL: EVIL}})
    query = {**shown_query("color", 1), "text": EVIL}
    query["top"][0]["text"] = f'"><img src=x onerror=alert(1)>{EVIL}'
    gallery = {"format": 1, "suite": EVIL, "tasks": [{"task": EVIL, "queries": [query]}]}
    write_json(finished / "eval" / "scenes.gallery.json", gallery)
    write_json(finished / "environment.json", {EVIL: {EVIL: EVIL}, "device": EVIL})
    (finished / "unreadable.jsonl").write_text(json.dumps({"step": 1, "sample": EVIL, "reason": EVIL}))

    page = write_report(finished)
    parts = Parts(page)
    assert parts.tags.count("script") == 1
    assert not [name for name, _ in parts.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "image",
    [
        "javascript:alert(1)",
        "https://example.com/x.png",
        "data:image/svg+xml;base64,PHN2Zz4=",
        "data:text/html;base64,PHA+",
        'data:image/png;base64,AAAA" onerror="alert(1)',
        "data:image/png;base64,AAAA\n",
    ],
)
def test_an_image_that_is_no_inert_data_is_left_out(finished, image):
    gallery = suite_gallery()
    gallery["tasks"][0]["queries"][0]["images"] = [image]
    write_json(finished / "eval" / "scenes.gallery.json", gallery)
    page = write_report(finished)
    assert image not in Parts(page).links()
    assert "image left out" in page.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_allows_no_script_but_its_own(finished):
    page = write_report(finished)
    parts = Parts(page)
    assert parts.links()
    assert all(link.startswith(("data:", "#")) for link in parts.links())
    assert "url(" not in page.read_text(encoding="utf-8")
    policy = next(value for name, value in parts.attributes if name == "content" and "script-src" in value)
    (script,) = parts.scripts
    assert "default-src 'none'" in policy
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_validations_are_drawn_and_the_step_of_the_model_is_said(finished):
    lines = [
        {"step": step, "seconds": 1.0, "averages": {"scenes/mean": step / 600}, "tasks": {"scenes/a": 0.1}}
        for step in (200, 400, 600)
    ]
    (finished / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((finished / "summary.json").read_text())
    write_json(finished / "summary.json", {**summary, "model_step": 400, "stopped_early": True})
    page = write_report(finished).read_text(encoding="utf-8")
    assert "<h3>Validation</h3>" in page
    assert page.count("<figcaption><h3>scenes/mean</h3></figcaption>") == 1
    assert "The model is of step 400: the best of the validations." in page
    assert "Training stopped early, after step 600." in page


def test_a_page_that_cannot_be_renamed_leaves_the_old_one_and_no_other_file(finished, monkeypatch):
    before = write_report(finished).read_bytes()
    files = sorted(finished.iterdir())

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    write_log(finished, [log_line(10)])
    with pytest.raises(OSError, match="No space"):
        write_report(finished)
    assert (finished / "report.html").read_bytes() == before
    assert sorted(finished.iterdir()) == files


@pytest.mark.process
def test_writing_a_report_never_imports_torch():
    code = "import sys, muco.report.page; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    curve=lists(tuples(integers(0, 10**6), floats(-1e30, 1e30)), min_size=1, max_size=60),
    broken=lists(integers(0, 59), max_size=3),
)
def test_a_curve_stays_inside_its_plot(curve, broken):
    curve = [(s, math.nan if i in broken else v) for i, (s, v) in enumerate(sorted(curve))]
    steps, values = [step for step, _ in curve], value_axis([value for _, value in curve])
    for axis in (step_axis(steps), log_step_axis(steps)):
        chart = draw("Loss", curve, steps=axis, values=values)
        assert all(0 <= point.x <= 100 and 0 <= point.y <= 100 for point in chart.points)
        assert all(-0.01 <= position <= 100.01 for position, _ in chart.x_ticks + chart.y_ticks)


def test_a_long_log_becomes_few_points():
    curve = [(step, 1.0) for step in range(1, 20_001)]
    steps = [step for step, _ in curve]
    for axis in (step_axis(steps), log_step_axis(steps)):
        assert len(draw("Loss", curve, steps=axis, values=value_axis([1.0])).points) <= 401


def test_numbers_are_written_as_people_read_them():
    assert [short(n) for n in (0, 0.5, 1280, 5e-5, 0.0012)] == ["0", "0.5", "1,280", "5e-5", "1.2e-3"]
    assert [measured(n) for n in (0.82, 1.7, 12, 512, 2e-5)] == ["0.820", "1.70", "12.0", "512", "2e-5"]
    assert [duration(s) for s in (5.21, 252.3, 3600, 90061)] == ["5.2 s", "4 min 12 s", "1 h", "1 d 1 h"]


@pytest.mark.browser
def test_a_browser_shows_the_page_whole(finished, browser):
    def ask(expression: str) -> object:
        return browser.execute_script(f"return {expression}")

    visible = "[...document.querySelectorAll('{}')].filter((e) => e.checkVisibility()).length"
    browser.get(write_report(finished).as_uri())

    assert ask("document.querySelectorAll('.bar').length") == len(TASKS)
    assert ask("document.images.length") == 15
    assert ask("[...document.images].every((image) => image.naturalWidth > 0)")

    browser.execute_script("document.querySelector('#only-misses').click()")
    assert ask(visible.format(".query")) == 3
    assert ask(visible.format(".task")) == 3  # all queries shown of `color` are hits
    choose = (
        "const s = document.querySelector('select'); s.value = 'task-2'; s.dispatchEvent(new Event('change'))"
    )
    browser.execute_script(choose)
    assert ask(visible.format(".task")) == 1
    browser.execute_script("document.querySelector('.scores a').click()")
    assert ask(visible.format(".query")) == 7

    browser.execute_script(
        "const chart = document.querySelector('.chart'), box = chart.getBoundingClientRect();"
        "chart.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right, clientY: box.top}))"
    )
    assert ask("document.querySelector('.tip').textContent") == "5e-3\nstep 600"

    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert ask("document.documentElement.scrollWidth") <= 390
    assert browser.get_log("browser") == []


def mmeb_scores(level: float, num_tasks: int) -> dict[str, object]:
    from muco.plugins.datasets.mmeb.suite import DATA_SETS

    names = list(DATA_SETS)[:num_tasks]
    score = {"metric": "precision@1", "score": level, "num_queries": 1000, "num_candidates": 1000}
    task = {**score, "chance": 0.001, "tied_share": 0, "groups": [], "more": {}, "in_mean": True}
    task |= {"data": str(level)}
    average = {"score": level, "chance": 0.001, "num_tasks": num_tasks}
    whole = {f"meta_{name}": average for name in ("classification", "vqa", "retrieval", "grounding")}
    averages = {**whole, "mean": average} if num_tasks == 36 else {}
    return {
        "format": 1,
        "suite": "mmeb",
        "tasks": {name: {"meta_task": DATA_SETS[name].meta_task, **task} for name in names},
        "averages": averages,
        "partial_averages": {} if num_tasks == 36 else {"mean": {**average, "of": 36}},
        "coherence": {"modality_gap": 0.61, "alignment": 0.8, "uniformity": -2.9},
        "warnings": [],
        "depends_on": {},
    }


@pytest.fixture
def compared(started: Path) -> Path:
    """A report of a run beside another, and beside one that scored 5 of 36 data sets."""
    others = []
    for name, level, num_tasks in (("tiny", 0.6125, 36), ("other", 0.5975, 36), ("part", 0.9, 5)):
        folder = started.parent / name
        folder.mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text(RECIPE.replace("tiny", name).replace("600", str(num_tasks)))
        write_json(folder / "eval" / "mmeb.json", mmeb_scores(level, num_tasks))
        others.append(folder)
    return write_report(others[0], others[1:])


def test_a_run_stands_beside_others_and_beside_published_scores_marked_as_the_papers(compared):
    page = compared.read_text(encoding="utf-8")
    assert "MuCo-7B" in page
    assert page.count('class="paper">paper<') == 11 + 1
    assert "61.2" in page
    assert "59.8" in page
    assert "73.6" in page  # MuCo-7B, as printed
    assert "train.num_steps: 36 -&gt; 36" not in page
    assert "train.num_steps: 5 -&gt; 36" in page
    assert page.count('<polygon class="shape') == 6
    assert "Not the same queries" in page
    assert "modality gap" in page


def test_a_search_among_all_candidates_does_not_stand_beside_scores_of_local_pools(started):
    averages = {"mean": {"score": 0.4, "chance": 0.1, "num_tasks": 16}}
    for pool in ("local", "global"):
        depends_on = {"suite": {"name": "mbeir", "pool": pool}}
        scores = {**suite_scores(), "suite": "mbeir", "averages": averages, "depends_on": depends_on}
        write_json(started / "eval" / "mbeir.json", scores)
        assert ("LamRA-Ret-7B" in write_report(started).read_text()) == (pool == "local")


def test_a_mean_over_fewer_data_sets_is_drawn_as_no_average(compared):
    page = compared.read_text(encoding="utf-8")
    row = page[page.index(">part</th>") :]
    row = row[: row.index("</tr>")]
    assert "5 of 36" in row
    assert "90.0" in row
    assert 'width="90.0%"' not in row
    assert "part" not in page[page.index('class="radar"') : page.index("</svg>", page.index('class="radar"'))]


@pytest.mark.browser
def test_a_browser_shows_the_comparison_whole(compared, browser):
    browser.set_window_size(1280, 900)
    browser.get(f"file://{compared}")
    assert browser.get_log("browser") == []
    radar = browser.find_element("css selector", ".radar").rect
    table = browser.find_element("css selector", "table.rows").rect
    assert radar["width"] > 300
    assert table["width"] < 1280
    assert table["y"] + table["height"] <= radar["y"]
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 1280
