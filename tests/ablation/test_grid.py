"""Grids: all problems are reported at once; their cells."""

from __future__ import annotations

import json
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from muco.ablation.cells import Plan, plan_grid
from muco.ablation.forecast import counted_flops
from muco.commands.main import app
from muco.config.load import load_recipe
from muco.core.errors import MucoError, RecipeError


def grid(tmp_path: Path, text: str) -> str:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return f"{path}"


def plan(tmp_path: Path, text: str, **options) -> Plan:
    return plan_grid(grid(tmp_path, text), tmp_path / "runs", **options)


BASE = "base: recipes/quickstart.yaml\n"

BAD = {
    "a key no recipe has": (
        BASE + "axes:\n  train.num_step: [1, 2]\n",
        "line 3   train.num_step: no such key. Did you mean 'num_steps'?",
    ),
    "a component that does not exist": (
        BASE + "axes:\n  loss:\n  - infonce\n  - {name: siglp}\n",
        "line 5   loss.name: no loss named 'siglp'. Did you mean 'siglip'?",
    ),
    "a setting that a component does not have": (
        BASE + "axes:\n  loss:\n  - infonce\n  - name: siglip\n    temperature: 0.1\n",
        "line 6   loss.temperature: `siglip` has no such key. Allowed: name, duplicates, scale, bias, mask",
    ),
    "a value that a component refuses": (
        BASE + "variants:\n  a: {packer.context: sideways}\n",
        "line 3   packer.context: must be 'causal' or 'isolated', not 'sideways'",
    ),
    "components that do not fit": (
        BASE + "axes:\n  packer.context: [isolated, causal]\n",
        "cell packer.context=causal: loss `multiturn_infonce` as set here needs independent_targets",
    ),
    "a key within a plain value": (
        BASE + "axes:\n  train.num_steps.x: [1]\n",
        "line 3   train.num_steps.x: train.num_steps of the recipe has no keys",
    ),
    "an empty axis": (
        BASE + "axes:\n  train.num_steps: []\n",
        "line 3   axes.'train.num_steps': must have at least 1 entry, not []",
    ),
    "two cells that are the same": (
        BASE + "axes:\n  train.num_steps: [480, 10, 480.0]\n",
        "two cells are the same: train.num_steps=480; and train.num_steps=480.0. Remove one",
    ),
    "a missing base": (
        "base: recipes/quickstrat.yaml\n",
        "line 1   base: recipes/quickstrat.yaml: no such file, and no recipe of that name is shipped",
    ),
    "no base": ("axes: {seed: [1]}\n", "give either `base` or `stages`, not both or neither"),
    "a baseline that is no cell": (
        BASE + "axes:\n  packer.order: [fixed, per_batch]\nbaseline:\n  packer.order: per_sample\n",
        "line 4   baseline: no cell has packer.order: per_sample. Its values: fixed, per_batch",
    ),
    "a baseline of no axis": (
        BASE + "axes:\n  packer.order: [fixed]\nbaseline:\n  packer.ordr: fixed\n",
        "line 4   baseline: no axis named 'packer.ordr'. Did you mean 'packer.order'?",
    ),
    "a baseline of several cells": (
        BASE + "axes:\n  packer.order: [fixed, per_batch]\n  train.num_steps: [1, 2]\n"
        "baseline: {packer.order: fixed}\n",
        "line 5   baseline: 2 cells have these values; add a value of train.num_steps",
    ),
    "a baseline that is excluded": (
        BASE + "axes:\n  packer.order: [fixed, per_batch]\n  train.num_steps: [1, 2]\n"
        "exclude: [{packer.order: fixed, train.num_steps: 1}]\n"
        "baseline: {packer.order: fixed, train.num_steps: 1}\n",
        "line 6   baseline: no cell has these values together",
    ),
    "everything excluded": (
        BASE + "axes:\n  packer.order: [fixed]\nexclude:\n- {packer.order: fixed}\n",
        "line 4   exclude: all cells are excluded",
    ),
    "an exclusion of no value": (
        BASE + "axes:\n  packer.order: [fixed]\nexclude:\n- {packer.order: per_batch}\n",
        "line 5   exclude.0: no cell has packer.order: per_batch. Its values: fixed",
    ),
    "paired axes of different lengths": (
        BASE + "paired:\n- train.num_steps: [1, 2]\n  seed: [1]\n",
        "line 2   paired: values change together, so each key needs as many: train.num_steps has 2, seed has",
    ),
    "a seed as an axis": (BASE + "axes:\n  seed: [1]\n", "`seed` is no axis: list the seeds in `seeds`"),
    "an axis given twice": (
        BASE + "axes:\n  loss.temperature: [1]\npaired:\n- {loss.temperature: [1]}\n",
        "`loss.temperature` is twice among `axes` and `paired`",
    ),
    "a seed given twice": (BASE + "seeds: [0, 0]\n", "line 2   seeds: a seed is listed twice"),
    "a key no grid has": (BASE + "exlude: []\n", "line 2   exlude: no such key. Did you mean 'exclude'?"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_grid_names_the_line_and_the_remedy(name, tmp_path):
    text, message = BAD[name]
    with pytest.raises(RecipeError) as raised:
        plan(tmp_path, text)
    assert message in str(raised.value)


def test_a_recipe_is_no_grid(tmp_path):
    with pytest.raises(MucoError, match=r"this is a recipe, not a grid; `muco-run .*grid\.yaml` runs it"):
        plan(tmp_path, "data: {}\n")


def test_all_problems_of_all_cells_are_reported_at_once_in_the_order_of_the_file(tmp_path):
    with pytest.raises(RecipeError) as raised:
        plan(tmp_path, BASE + "axes:\n  train.num_step: [1, 2]\n  loss.temperature: [0.1, warm, hot]\n")
    lines = [problem.line for problem in raised.value.problems]
    assert lines == [3, 4, 4]


def test_a_large_grid_asks_for_yes(tmp_path):
    ten = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"
    keys = ("num_steps", "warmup_steps", "keep_checkpoints", "global_batch_size")
    text = BASE + "axes:\n" + "".join(f"  train.{key}: {ten}\n" for key in keys)
    with pytest.raises(MucoError, match=r"10,000 cells, which is more than 500.*--yes"):
        plan(tmp_path, text)


def test_a_cell_is_the_product_of_variants_pairs_and_axes_without_the_excluded(tmp_path):
    cells = plan(
        tmp_path,
        BASE + "variants: {a: {packer.order: fixed}, b: {packer.order: per_batch}}\n"
        "paired:\n- {train.num_steps: [10, 20], train.warmup_steps: [1, 2]}\n"
        "axes:\n  loss.temperature: [0.1, 0.2]\n"
        "exclude: [{variant: b, loss.temperature: [0.1, 0.2], train.num_steps: 20}]\n"
        "seeds: [3, 4]\n",
    )
    assert cells.axes == ["variant", "train.num_steps", "train.warmup_steps", "loss.temperature"]
    assert [tuple(row.point.values.values()) for row in cells.rows] == [
        ("a", 10, 1, 0.1), ("a", 10, 1, 0.2), ("a", 20, 2, 0.1), ("a", 20, 2, 0.2),
        ("b", 10, 1, 0.1), ("b", 10, 1, 0.2),
    ]  # fmt: skip
    recipe = cells.rows[2].cells[4].recipe
    train = recipe.train
    assert (recipe.seed, train.num_steps, train.warmup_steps) == (4, 20, 2)
    assert recipe.loss.config.temperature == 0.1
    assert cells.baseline is cells.rows[0]
    assert cells.metrics == ("scenes/mean",)


def fingerprints(cells: Plan) -> list[str]:
    return [cell.fingerprint for cell in cells.cells()]


def test_another_axis_or_another_name_renames_no_cell(tmp_path):
    two = plan(tmp_path, BASE + "axes:\n  loss.temperature: [0.1, 0.2]\n")
    more = plan(
        tmp_path,
        "name: other\n" + BASE + "set: {train.num_workers: 2}\n"
        "axes:\n  packer.order: [per_batch, fixed]\n  loss.temperature: [0.3, 0.2, 0.1]\n",
    )
    assert {*fingerprints(two)} < {*fingerprints(more)}
    assert len({*fingerprints(more)}) == 6


def test_other_values_other_seeds_and_other_data_are_other_cells(tmp_path):
    base = plan(tmp_path, BASE)
    for text in ("seeds: [1]", "set: {loss.temperature: 0.5}", "set: {data.turns.source.num_samples: 100}"):
        assert fingerprints(plan(tmp_path, BASE + text + "\n")) != fingerprints(base)


STAGES = """
stages:
  pretrain: {base: recipes/quickstart.yaml, set: {train.num_steps: 5}}
  finetune: {base: recipes/quickstart_single_turn.yaml}
"""


def test_the_second_stage_starts_from_the_first_and_shares_its_run(tmp_path):
    cells = plan(
        tmp_path,
        STAGES + "axes:\n  pretrain.loss.temperature: [0.1, 0.2]\n  finetune.loss.temperature: [0.1, 0.2]\n",
    )
    assert len(cells.rows) == 4
    runs = cells.cells()
    assert [cell.parent is None for cell in runs] == [True] * 2 + [False] * 4
    for cell in runs[2:]:
        backbone = cell.recipe.backbone.config
        assert backbone.pretrained == f"{cell.parent.folder}/model"
        assert backbone.random_init is None
        assert cell.parent.recipe.train.num_steps == 5
    assert runs[2].parent.fingerprint == runs[0].fingerprint
    moved = plan_grid(f"{tmp_path / 'grid.yaml'}", tmp_path / "elsewhere")
    assert fingerprints(moved) == fingerprints(cells)


def test_a_key_without_a_stage_changes_all_stages(tmp_path):
    cells = plan(tmp_path, STAGES + "axes:\n  loss.temperature: [0.1, 0.2]\n")
    assert [cell.recipe.loss.config.temperature for cell in cells.cells()] == [0.1, 0.2, 0.1, 0.2]


def test_another_base_and_set_replace_the_grids_own(tmp_path):
    text = BASE + "set: {packer.order: per_batch}\naxes:\n  loss.temperature: [0.1, 0.2]\n"
    other = plan(
        tmp_path,
        text,
        bases=["recipes/scenes_clip.yaml"],
        overrides=["train.num_steps=7", "packer.order=fixed"],
    )
    recipe = other.rows[0].cells[0].recipe
    assert (recipe.backbone.name, recipe.train.num_steps) == ("clip", 7)
    assert recipe.packer.config.order == "fixed"
    others = ["pretrain=recipes/quickstart_muco.yaml", "finetune=recipes/quickstart_muco.yaml"]
    for cell in plan(tmp_path, STAGES, bases=others).cells():
        assert cell.recipe.packer.config.context == "causal"
    with pytest.raises(MucoError, match=r"write --base STAGE=RECIPE\. Stages: pretrain, finetune"):
        plan(tmp_path, STAGES, bases=["recipes/quickstart.yaml"])


def test_only_selects_cells_by_axis_and_seed(tmp_path):
    file = grid(tmp_path, BASE + "axes:\n  loss.temperature: [0.1, 0.2, 0.3]\nseeds: [0, 1]\n")

    def listed(*only: str) -> str:
        words = [word for each in only for word in ("--only", each)]
        result = CliRunner().invoke(app, ["ablate", file, "--dry-run", "--folder", f"{tmp_path}", *words])
        return result.output if result.exception is None else f"{result.exception}"

    assert "6 of 6 cells to run" in listed()
    assert "4 of 4 cells to run" in listed("loss.temperature=0.1", "loss.temperature=0.3")
    assert "1 of 1 cells to run, 440 steps" in listed("loss.temperature=0.2", "seed=1")
    assert "no cell has loss.temperature: 0.5. Its values: 0.1, 0.2, 0.3" in listed("loss.temperature=0.5")
    assert "no such seed. Seeds: 0, 1" in listed("seed=2")
    assert "write KEY=VALUE" in listed("loss.temperature")


def test_a_dry_run_writes_nothing(tmp_path):
    file = grid(tmp_path, BASE)
    CliRunner().invoke(app, ["ablate", file, "--dry-run", "--folder", f"{tmp_path / 'runs'}"])
    assert not (tmp_path / "runs").exists()


def test_the_flops_of_a_stage_are_counted_before_the_model_of_the_stage_before_exists(tmp_path):
    stages = "stages:\n  a: {base: scenes_stage1}\n  b: {base: scenes_stage2}\n"
    first, second = plan(tmp_path, stages).cells()
    before, after = counted_flops(first), counted_flops(second)
    assert before is not None
    assert after is not None
    assert before != after


def test_the_resolved_recipe_of_a_cell_is_a_recipe(tmp_path):
    from muco.ablation.state import write_recipe

    cell = plan(tmp_path, BASE + "axes:\n  loss.temperature: [0.1]\n").cells()[0]
    write_recipe(cell, "loss.temperature=0.1")
    path = tmp_path / "runs" / "cells" / f"{cell.fingerprint}.yaml"
    assert load_recipe(f"{path}") == cell.recipe
    assert yaml.safe_load(path.read_text())["name"] == cell.fingerprint
    command = f"muco-run {path} --to {cell.folder} --resume"
    assert f"#   {command}" in path.read_text().splitlines()


def test_the_schema_of_grids_accepts_what_is_shipped_and_no_other_key():
    schema = json.loads(CliRunner().invoke(app, ["schema", "grid"]).output)
    validator = jsonschema.Draft202012Validator(schema)
    for name in SHIPPED:
        text = files("muco.recipes").joinpath("ablations", name).read_text()
        validator.validate(yaml.safe_load(text))
    assert not validator.is_valid({"base": "quickstart", "axis": {}})
    assert not validator.is_valid({"base": "quickstart", "axes": {"seed": []}})


SHIPPED = sorted(path.name for path in Path(str(files("muco.recipes"))).glob("ablations/*.yaml"))


def test_every_cell_of_every_shipped_grid_validates_in_seconds(tmp_path):
    start = time.process_time()
    plans = [plan_grid(f"recipes/ablations/{name}", tmp_path) for name in SHIPPED]
    assert time.process_time() - start < 20
    assert sum(len(plan.cells()) for plan in plans) > 100
    assert all(plan.grid.title for plan in plans)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_grid_begins_with_the_command_that_runs_it(name):
    text = files("muco.recipes").joinpath("ablations", name).read_text()
    assert f"#   muco ablate recipes/ablations/{name}" in text.partition("title:")[0]
