"""The table in all formats, its page, and the terminal, from results given by hand."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from muco.ablation.cells import Plan, plan_grid
from muco.ablation.launch.local import device_groups
from muco.ablation.launch.task import Failure, Task, write_failure
from muco.ablation.page import render
from muco.ablation.plots import effects_of, heat_maps_of
from muco.ablation.progress import GridProgress
from muco.ablation.results import Budget, RowResult, Scores
from muco.ablation.schedule import run_cells
from muco.ablation.statistics import Difference
from muco.ablation.table import csv_text, latex, markdown
from muco.console import Terminal
from muco.core.errors import MucoError

GRID = """
title: A & B <b>?
base: recipes/quickstart.yaml
axes:
  loss.temperature: [0.1, 0.2]
  packer.order: [fixed, per_batch]
seeds: [0, 1]
"""


@pytest.fixture
def plan(tmp_path) -> Plan:
    (tmp_path / "g_1.yaml").write_text(GRID)
    return plan_grid(f"{tmp_path / 'g_1.yaml'}", tmp_path)


def results(plan: Plan) -> list[RowResult]:
    rows = []
    for index, row in enumerate(plan.rows):
        scores = Scores((0.5 + 0.1 * index, 0.6 + 0.1 * index))
        is_first = index == 0
        rows.append(
            RowResult(
                row=row,
                is_baseline=is_first,
                seeds=(0, 1) if index < 3 else (),
                scores={"scenes/mean": scores} if index < 3 else {},
                budget=Budget(100 + 50 * index, 2e12 * (1 + index)) if index < 3 else None,
                difference=Difference(0.1 * index, 0.05, 0.25, 0.0004) if index in (1, 2) else None,
                adjusted_p=0.0008 if index == 1 else 0.04 if index == 2 else None,
                unequal=("samples",) if index == 2 else (),
            )
        )
    return rows


def test_markdown_has_means_deviations_differences_and_marked_budgets(plan):
    lines = markdown(plan, results(plan)).splitlines()
    assert lines[0] == "# g_1"
    assert lines[4].startswith("| loss.temperature | packer.order | seeds | scenes/mean | difference in ")
    assert lines[6] == "| 0.1 | fixed | 2 | 55.0 ± 7.1 | baseline |  |  | 100 | 2 |"
    assert lines[7] == "| 0.1 | per_batch | 2 | 65.0 ± 7.1 | +10.0 | +5.0 to +25.0 | <0.001 | 150 | 4 |"
    assert lines[8] == "| 0.2 | fixed | 2 | 75.0 ± 7.1 | +20.0 | +5.0 to +25.0 | 0.040 | 200 * | 6 |"
    assert lines[9] == "| 0.2 | per_batch | 0 of 2 |  |  |  |  |  |  |"
    assert lines[-1] == "Marked *: samples differ by more than 1% from the baseline's."


def test_csv_has_full_precision_and_the_cells(plan):
    rows = list(csv.DictReader(io.StringIO(csv_text(plan, results(plan)))))
    assert float(rows[1]["scenes/mean mean"]) == pytest.approx(0.65)
    assert float(rows[1]["scenes/mean seed 1"]) == 0.7
    assert float(rows[1]["p"]) == 0.0004
    assert rows[2]["unequal_budget"] == "samples"
    assert rows[3]["cell seed 1"] == plan.rows[3].cells[1].fingerprint
    assert rows[3]["difference"] == ""


def test_latex_escapes_and_marks_the_best(plan):
    text = latex(plan, results(plan))
    assert r"\caption{A \& B $<$b$>$?" in text
    assert r"0.1 & per\_batch & 2 & 65.0 $\pm$ 7.1 & +10.0" in text
    assert r"\textbf{75.0 $\pm$ 7.1}" in text
    assert text.count(r"\textbf") == 1
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


def test_the_page_escapes_the_grid_and_says_how_recipes_differ(plan, tmp_path):
    for each in plan.rows:
        for cell in each.cells.values():
            cell.folder.mkdir(parents=True)
    page = render(plan, [each for each in results(plan) if not each.seeds], tmp_path)
    assert "A &amp; B &lt;b&gt;?" in page
    assert "loss.temperature: 0.1 -&gt; 0.2" in page
    assert "packer.order: fixed -&gt; per_batch" in page


@pytest.mark.browser
def test_a_click_on_a_title_sorts_the_table(plan, tmp_path, browser):
    for each in plan.rows:
        for cell in each.cells.values():
            cell.folder.mkdir(parents=True)
    done = [replace(each, seeds=()) for each in results(plan)]
    path = tmp_path / "index.html"
    path.write_text(render(plan, done, tmp_path))
    browser.get(path.as_uri())

    def scores() -> list[str]:
        cells = browser.find_elements(By.CSS_SELECTOR, ".results td:nth-child(4)")
        return [cell.text.partition(" ")[0] for cell in cells]

    title = browser.find_elements(By.CSS_SELECTOR, ".results th button")[3]
    assert scores() == ["55.0", "65.0", "75.0", ""]
    title.click()
    assert scores() == ["75.0", "65.0", "55.0", ""]
    title.click()
    assert scores() == ["55.0", "65.0", "75.0", ""]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_effects_are_means_over_the_other_axes(plan):
    temperature, order = effects_of(plan, results(plan))
    assert [(value, mean) for _, _, value, mean in temperature.means] == [("0.1", "60.0"), ("0.2", "75.0")]
    assert [(value, mean) for _, _, value, mean in order.means] == [("fixed", "65.0"), ("per_batch", "65.0")]
    (heat,) = heat_maps_of(plan, results(plan))
    assert heat.columns == ("fixed", "per_batch")
    assert [cell and round(cell[1], 2) for _, cells in heat.rows for cell in cells] == [0, 0.5, 1, None]


class Fails:
    """A launcher whose nodes are gone."""

    def submit(self, tasks):
        return [self for _ in tasks]

    def done(self) -> bool:
        return True

    def result(self) -> int:
        raise RuntimeError("node lost")

    def stop(self) -> None:
        pass


def test_an_error_of_the_launcher_is_kept_as_the_failure_of_the_cell(plan):
    cells = plan.cells()[:2]
    cells[0].folder.parent.mkdir(parents=True)
    assert set(run_cells(cells, Fails(), lambda cell, state: None).values()) == {"failed"}
    assert "RuntimeError: node lost" in Task(cells[0].folder).failure.read_text()


def test_the_terminal_shows_a_live_table(plan):
    cells = plan.cells()
    cells[0].folder.mkdir(parents=True)
    write_failure(Task(cells[0].folder), Failure(2, "more\nthe last line"))
    (cells[1].folder).mkdir(parents=True)
    (cells[1].folder / "train.jsonl").write_text('{"step": 10}\n{"step": 20}\n')
    console = Terminal(file=io.StringIO(), force_terminal=True, width=120)
    with GridProgress(plan, cells, console) as progress:
        progress.report(cells[0], "failed")
        progress.report(cells[1], "submitted")
    text = console.file.getvalue()
    assert "failed: loss.temperature=0.1, packer.order=fixed, seed=0" in text
    assert "the last line" in text
    assert "20 of 440" in text
    assert "6 missing" in text
    plain = Terminal(file=io.StringIO())
    with GridProgress(plan, cells, plain) as progress:
        progress.report(cells[2], "stopped")
    assert Path(f"{cells[2].folder}").name not in plain.file.getvalue()
    assert plain.file.getvalue().startswith("0 of 8 done; stopped: ")


def test_cells_that_run_at_once_have_gpus_of_their_own():
    assert device_groups([], 2, 4) == [None, None]
    assert device_groups(["0", "1", "2", "3", "4"], 2, 2) == ["0,1", "2,3"]
    assert device_groups(["GPU-a", "GPU-b"], 1, 1) == ["GPU-a"]
    with pytest.raises(MucoError, match="6 GPUs are needed, and 4 are here"):
        device_groups(["0", "1", "2", "3"], 3, 2)
    program = Task(Path("cells/a"), num_processes=2).program
    assert program[1:] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "muco"
    ]  # fmt: skip
