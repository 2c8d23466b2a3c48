"""A micro grid through each launcher, run again, run with more values, and with a cell that fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from muco.ablation.launch.slurm import SlurmLauncher
from muco.commands.main import app
from muco.run_folder import RunFolder
from tests.helpers.small import QUICK

pytestmark = pytest.mark.process


def write_grid(folder: Path, temperatures: list[float], **more) -> None:
    settings = dict(each.split("=") for each in QUICK)
    grid = {
        "base": "recipes/quickstart.yaml",
        "set": {key: yaml.safe_load(value) for key, value in settings.items()} | {"train.num_steps": 4},
        "axes": {"loss.temperature": temperatures},
        **more,
    }
    (folder / "micro.yaml").write_text(yaml.safe_dump(grid))


def ablate(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["ablate", "micro.yaml", *arguments])
    assert (result.exit_code == 0) == (code == 0), result.output
    return result.output if code == 0 else f"{result.output}{result.exception}"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "runs/ablations/micro").iterdir()}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A folder in which a grid of two cells is done."""
    folder = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_grid(folder, [0.1, 0.2])
        assert "2 of 2 done" in ablate("--jobs", "2")
    return folder


def test_a_grid_runs_and_its_table_has_every_cell(done):
    table = (done / "runs/ablations/micro/table.md").read_text()
    rows = [line.split("|")[1:] for line in table.splitlines() if line.startswith("| 0.")]
    assert [row[0].strip() for row in rows] == ["0.1", "0.2"]
    assert "baseline" in rows[0][3]
    assert " to " in rows[1][4]
    for path in (done / "runs/ablations/cells").glob("*.yaml"):
        summary = RunFolder(path.with_suffix("")).summary()
        assert summary is not None
        assert f"{100 * summary.metrics['scenes/mean']:.1f}" in table


def test_the_page_loads_nothing_and_links_every_run(done):
    folder = done / "runs/ablations/micro"
    page = (folder / "index.html").read_text()
    links = re.findall(r'<a href="([^"]+)"', page)
    assert len(links) == 2 * 3
    assert all((folder / link).is_file() for link in links)
    assert not re.findall(r"(?:src|href)=.?https?:", page)
    assert "default-src &#39;none&#39;" in page
    assert "loss.temperature: 0.1 -&gt; 0.2" in page
    assert "Effect of each axis" in page
    assert re.search("over .FLOPs", page)


def test_a_second_start_runs_nothing_and_a_new_value_only_its_own_cell(done, monkeypatch):
    """The new cell runs on a Ray cluster of two workers."""
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(done)
    before = files(done)
    assert "2 of them not to run" in ablate()
    assert files(done) == before
    write_grid(done, [0.3, 0.1, 0.2])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        output = ablate("--launcher", "ray")
    finally:
        ray.shutdown()
    assert "3 cells, 2 of them not to run" in output
    assert output.count("; done: ") == 1
    assert "done: loss.temperature=0.3, seed=0" in output


def test_a_failing_cell_stops_no_other_and_its_log_is_named(here):
    broken = {"data.more": {"shards": "nowhere", "how_to_get": "buy it"}}
    write_grid(here, [0.1], variants={"broken": broken, "fine": {}})
    output = ablate(code=1)
    assert "failed: variant=broken" in output
    assert "2 of 2" not in output
    assert "done: variant=fine" in output
    (failed,) = here.glob("runs/ablations/cells/*.failed.json")
    assert json.loads(failed.read_text())["exit_code"] == 2
    assert "nowhere is not there" in Path(f"{failed}".replace(".failed.json", ".log")).read_text()
    assert "2 of them not to run" in ablate(code=1)
    assert "1 of 2 cells to run" in ablate("--dry-run")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves a Popen
def test_submitit_runs_cells_as_processes_and_queues_an_interrupted_one_again(here, monkeypatch):
    pytest.importorskip("submitit")
    from muco.ablation.launch import slurm

    monkeypatch.setattr(slurm, "SlurmLauncher", lambda *given: SlurmLauncher(*given, cluster="local"))
    write_grid(here, [0.1])
    assert "1 of 1 done" in ablate("--launcher", "slurm", "--resource", "timeout_min=5")
    task = slurm.Requeued("a task")
    assert task.checkpoint().function.task == "a task"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_slurm_the_launcher_says_so(here):
    pytest.importorskip("submitit")
    write_grid(here, [0.1])
    assert "--launcher slurm: " in ablate("--launcher", "slurm", code=2)
    assert "Invalid value for '--launcher'" in ablate("--launcher", "x", code=2)


def test_the_script_is_the_command():
    script = Path(__file__).parents[2] / "tools/ablate.py"
    output = subprocess.run(
        [sys.executable, script, "none.yaml"], capture_output=True, text=True, check=False
    )
    assert output.returncode == 2
    assert "none.yaml: no such file" in output.stderr
