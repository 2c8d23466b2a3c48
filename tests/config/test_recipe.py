"""Loading recipes: what is accepted, and the errors for everything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

import muco
from muco.config.json_schema import recipe_schema
from muco.config.load import find_recipe, load_recipe, validate_settings
from muco.config.recipe import Recipe
from muco.config.yaml_lines import read_yaml
from muco.core import ComponentConfig, MucoError, PluginError, RecipeError, hookimpl
from muco.core.registry import Registry
from muco.plugins import hooks
from muco.plugins.backbones.qwen_vl import QwenVL

SHIPPED = sorted(path.name for path in Path(str(files("muco.recipes"))).glob("*.yaml"))

RECIPE = """\
name: small
seed: 0
data:
  scenes:
    source:
      name: scenes
      num_samples: 20
sampler:
  name: mixture
packer:
  name: multi_turn
  context: isolated
backbone:
  name: qwen_vl
  random_init:
    hidden_dim: 32
pooler:
  name: turn_token
loss:
  name: multiturn_infonce
  temperature: 0.05
train:
  num_steps: 10
  global_batch_size: 8
  learning_rate: 1.0e-3
evaluate:
  suites:
    - name: scenes
      num_queries: 8
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a recipe from its text."""
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, *overrides: str, **options: Any):
        Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe("r.yaml", overrides, **options)

    return load


@pytest.fixture
def refusal(load):
    """Return the error message of a recipe that is refused."""

    def refusal(text: str | bytes, *overrides: str, **options: Any) -> str:
        with pytest.raises(MucoError) as caught:
            load(text, *overrides, **options)
        return str(caught.value)

    return refusal


def changed(old: str, new: str) -> str:
    assert RECIPE.count(old) == 1
    return RECIPE.replace(old, new)


# What is accepted


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_and_its_resolved_dump_are_one_recipe(name, tmp_path):
    recipe = load_recipe(f"recipes/{name}")
    again = tmp_path / "resolved.yaml"
    again.write_text(yaml.safe_dump(recipe.dump(), sort_keys=False))
    assert load_recipe(str(again)) == recipe
    assert load_recipe(str(again)).dump() == recipe.dump()


@pytest.mark.parametrize(
    "name", ["quickstart", "quickstart.yaml", "recipes/quickstart.yaml", "recipes/quickstart"]
)
def test_a_shipped_recipe_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name).name == "quickstart.yaml"


def test_a_file_on_disk_comes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/quickstart.yaml").write_text(RECIPE)
    assert load_recipe("recipes/quickstart.yaml").name == "small"
    assert load_recipe("quickstart.yaml").name == "quickstart"


def test_a_recipe_differs_from_one_with_another_setting(load):
    assert load(RECIPE) == load(RECIPE, "loss.temperature=0.05")
    assert load(RECIPE) != load(RECIPE, "loss.temperature=0.06")
    assert load(RECIPE) != load(RECIPE, "loss.name=infonce")


@pytest.mark.parametrize(("written", "value"), [("1e-3", 1e-3), ("5E-5", 5e-5), ("1.0e-3", 1e-3), ("1", 1.0)])
def test_a_float_may_be_written_as_people_do(load, written, value):
    assert load(changed("1.0e-3", written)).train.learning_rate == value
    assert load(RECIPE, f"train.learning_rate={written}").train.learning_rate == value


def test_an_override_reaches_every_depth(load):
    recipe = load(
        RECIPE,
        "name=other",
        "train.num_steps=3",
        "backbone.random_init.num_layers=2",
        "data.scenes.source.seed=7",
        "evaluate.suites.0.num_queries=4",
        "evaluate.ties=first",
        "train.betas=[0.8, 0.9]",
        "sampler.weights.scenes=2",
        "pooler=mean",
        "train.chunk_tokens=null",
    )
    assert (recipe.name, recipe.train.num_steps, recipe.evaluate.ties) == ("other", 3, "first")
    assert recipe.backbone.config.random_init.num_layers == 2
    assert recipe.backbone.config.random_init.hidden_dim == 32
    assert recipe.data["scenes"].source.config.seed == 7
    assert recipe.evaluate.suites[0].config.num_queries == 4
    assert recipe.train.betas == (0.8, 0.9)
    assert recipe.sampler.config.weights == {"scenes": 2}
    assert recipe.pooler.name == "mean"


def test_a_byte_order_mark_is_no_problem(load):
    assert load("\ufeff" + RECIPE) == load(RECIPE)


def test_a_recipe_is_frozen(load):
    recipe = load(RECIPE)
    for part, name in [(recipe, "seed"), (recipe.train, "num_steps"), (recipe.loss.config, "temperature")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, 1)


# What is refused. `# <-` marks the line that the message must name.


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("multiturn_infonce", "multi_turn_infonce # <-",
         "loss.name: no loss named 'multi_turn_infonce'. Did you mean 'multiturn_infonce'?"),
        ("pooler:\n  name: turn_token", "pooler: # <-\n  name: 3",
         "pooler: must be a mapping with the `name` of a pooler"),
        ("pooler:\n  name: turn_token", "pooler: [mean] # <-",
         "pooler: must be a mapping with the `name` of a pooler"),
        ("pooler:\n  name: turn_token\n", "", "pooler: missing; it has no default"),
        ("seed: 0", "sed: 0 # <-", "sed: no such key. Did you mean 'seed'?"),
        ("seed: 0", "zzz: 0 # <-", "zzz: no such key. Allowed: name, seed, data, sampler,"),
        ("seed: 0", "seed: -1 # <-", "seed: must be greater than or equal to 0, not -1"),
        ("seed: 0", "seed: 0.5 # <-", "seed: must be a whole number"),
        ("temperature", "temprature",
         "loss.temprature: `multiturn_infonce` has no such key. Did you mean 'temperature'?"),
        ("temperature: 0.05", "temperature: warm # <-", "loss.temperature: must be a number"),
        ("temperature: 0.05", "temperature: .inf # <-", "loss.temperature: must be a finite number"),
        ("temperature: 0.05", "temperature: 0 # <-", "loss.temperature: must be greater than 0, not 0"),
        ("hidden_dim: 32", "hiden_dim: 32 # <-",
         "backbone.random_init.hiden_dim: no such key. Did you mean 'hidden_dim'?"),
        ("hidden_dim: 32", "hidden_dim: wide # <-",
         "backbone.random_init.hidden_dim: must be a whole number"),
        ("num_queries: 8", "num_querys: 8 # <-",
         "evaluate.suites.0.num_querys: `scenes` has no such key. Did you mean 'num_queries'?"),
        ("    - name: scenes\n", "    - name: scenery # <-\n",
         "evaluate.suites.0.name: no suite named 'scenery'. Did you mean 'scenes'?"),
        ("    - name: scenes\n      num_queries: 8", "    - num_queries: 8 # <-",
         "evaluate.suites.0: `name` is missing: which suite?"),
        ("num_samples: 20", "num_sample: 20 # <-",
         "data.scenes.source.num_sample: `scenes` has no such key. Did you mean 'num_samples'?"),
        ("    source:", "    sorce: # <-", "data.scenes.sorce: no such key. Did you mean 'source'?"),
        ("  scenes:\n", "  scenes: # <-\n    shards: here\n",
         "data.scenes: give either `source` or `shards`, not both or neither"),
        ("train:\n  num_steps: 10\n", "train: # <-\n", "train.num_steps: missing; it has no default"),
        ("train:\n", "train: # <-\n  grad_cache: true\n",
         "train: `grad_cache: true` needs `chunk_tokens`, the size of a chunk\n"),
        ("train:\n", "train: # <-\n  chunk_tokens: auto\n",
         "train: `chunk_tokens: auto` needs `grad_cache: true`\n"),
        ("train:\n", "train: # <-\n  offload_image_features: true\n",
         "train: `offload_image_features` needs `grad_cache: true`\n"),
        ("train:\n", "train: # <-\n  held_tokens: 4096\n",
         "train: `held_tokens` needs `grad_cache: true`\n"),
        ("train:\n", "train: # <-\n  grad_cache: true\n  chunk_tokens: 9\n  held_tokens: auto\n"
         "  gather_weights: layer\n",
         "train: `held_tokens` has no use with `gather_weights: layer`"),
        ("seed: 0", "samples_per_step: 8 # <-", "samples_per_step: no such key"),
        ("  global_batch_size: 8", "  global_batch_size: 8\n  samples_per_step: 8 # <-",
         "train.samples_per_step: this key is now `global_batch_size`"),
        ("learning_rate: 1.0e-3", "learning_rate: 1.0e-3\n  betas: [0.9, 1.5] # <-",
         "train.betas.1: must be less than 1, not 1.5"),
        ("name: small", "name: ../small # <-", "name: use at most 128 letters, digits, '.', '_' and '-'"),
        ("name: small", "name: .. # <-", "name: use at most 128 letters, digits"),
        ("name: small", 'name: "" # <-', "name: use at most 128 letters, digits"),
        ("name: small", 'name: "a\\n" # <-', "name: use at most 128 letters, digits"),
        ("name: small", "name: 2024-01-01 # <-", "name: must be text"),
        ("  scenes:\n    source", "  ../../evil: # <-\n    source",
         "data.'../../evil': use at most 128 letters, digits, '.', '_' and '-'"),
        ("  scenes:\n    source", '  "": # <-\n    source', "data.'': use at most 128 letters"),
        ("  scenes:\n    source", "  3: # <-\n    source", "data.3: a key must be text; write it in quotes"),
        ("packer:\n", "packer: # <-\n  targets: dialogue\n",
         "packer: `context: isolated` needs `targets: independent`"),
        ("  num_steps: 10", "  num_steps: 10\n  num_steps: 20 # <-",
         "train.num_steps: given twice, first in line 23"),
        ("seed: 0", "seed: 0\nname: again # <-", "name: given twice, first in line 1"),
    ],
)  # fmt: skip
def test_one_problem_is_reported_with_its_line(refusal, old, new, expected):
    text = changed(old, new).replace("temprature: 0.05", "temprature: 0.05 # <-")
    message = refusal(text)
    assert message.startswith("r.yaml: 1 problem\n")
    assert expected in f"{message}\n"
    marked = [number for number, line in enumerate(text.splitlines(), 1) if "# <-" in line]
    assert re.findall(r"^  line (\d+) ", message, re.MULTILINE) == [str(number) for number in marked]


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(refusal):
    text = changed("multiturn_infonce", "infonc")
    text = text.replace("num_steps: 10", "num_step: ten").replace("hidden_dim: 32", "hidden_dim: -1")
    text = text.replace("seed: 0", "seed: x").replace("pooler:\n  name: turn_token\n", "")
    message = refusal(text).splitlines()
    assert message[0] == "r.yaml: 6 problems"
    keys = [line.split(":")[0].split() for line in message[1:] if not line.startswith(" " * 11)]
    assert keys == [
        ["pooler"],
        ["line", "2", "seed"],
        ["line", "16", "backbone.random_init.hidden_dim"],
        ["line", "18", "loss.name"],
        ["line", "20", "train.num_steps"],
        ["line", "21", "train.num_step"],
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "this is an empty file"),
        ("# a comment\n", "this is an empty file"),
        ("- name: small\n", "this is a list"),
        ("quickstart", "this is a str"),
        ("a: [1,\nb: 2", "line 2   not YAML: expected ',' or ']'"),
        ("train:\n\tnum_steps: 1", "line 2   not YAML: found character '\\t'"),
        (RECIPE + "---\na: 1\n", "not YAML"),
        (RECIPE + "x: \x07\n", "not YAML"),
        (RECIPE.encode() + b"# caf\xe9\n", "r.yaml: cannot be read: 'utf-8' codec can't decode byte 0xe9"),
        ("when: 2024-13-45\n", "not YAML: month must be in 1..12"),
        ("x: !!python/object/apply:os.system [id]\n", "line 1   not YAML: could not determine a constructor"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("a: &a [1,1,1,1,1,1,1,1]\n" + "".join(
            f"{new}: &{new} [{','.join([f'*{old}'] * 8)}]\n"
            for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        ), "too large with its aliases expanded"),
    ],
)  # fmt: skip
def test_a_file_that_contains_no_recipe_is_refused(refusal, text, expected):
    assert expected in refusal(text)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("quikstart", "quickstart"),
        ("recipes/quikstart.yaml", "quickstart"),
        ("elsewhere/quickstart.yaml", "quickstart"),
        ("loses", "ablations/losses"),
    ],
)
def test_the_error_of_a_missing_file_names_the_nearest_shipped_recipe(name, near):
    with pytest.raises(MucoError) as caught:
        load_recipe(name)
    assert str(caught.value).startswith(f"{name}: no such file")
    assert str(caught.value).endswith(f"Did you mean 'recipes/{near}.yaml'?")


@pytest.mark.parametrize(
    ("name", "listed", "left_out"),
    [
        ("zzz", "recipes/quickstart.yaml", "losses"),
        ("recipes/ablations/zzz.yaml", "recipes/ablations/losses.yaml", "quick"),
    ],
)
def test_the_error_of_a_name_like_no_other_lists_the_shipped_files_of_its_folder(name, listed, left_out):
    with pytest.raises(MucoError) as caught:
        load_recipe(name)
    _, _, shipped = str(caught.value).partition("Shipped: ")
    assert listed in shipped.split(", ")
    assert left_out not in shipped


def test_a_grid_is_no_recipe():
    with pytest.raises(
        MucoError, match="this is a grid, not a recipe; `muco ablate recipes/ablations/losses"
    ):
        load_recipe("recipes/ablations/losses.yaml")


@pytest.mark.parametrize("name", ["", ".", "..", "recipes", "recipes/../recipes/quickstart", "/quickstart"])
def test_a_name_that_leads_outside_the_shipped_recipes_finds_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MucoError, match="no such file"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "--set seed: write KEY=VALUE"),
        ("=3", "--set =3: write KEY=VALUE"),
        ("name.x=1", "--set name.x: name of r.yaml has no keys"),
        ("data.scenes.source.name.x=1", "data.scenes.source.name of r.yaml has no keys"),
        ("evaluate.suites.1.num_queries=4", "evaluate.suites.1 of r.yaml has no keys"),
        ("evaluate.suites.first.num_queries=4", "evaluate.suites.first of r.yaml has no keys"),
        ("evaluate.suites.1=scenes", "evaluate.suites has entries 0 to 0"),
        ("evaluate.suites.-1=scenes", "evaluate.suites has entries 0 to 0"),
        ("evaluate.suites.²=scenes", "evaluate.suites has entries 0 to 0"),
        ("train.num_steps=[", "the value is not YAML; quote it"),
        ("name=2024-13-45", "the value is not YAML; quote it"),
        ("train.num_step=4", "  train.num_step: no such key. Did you mean 'num_steps'?"),
        ("train.num_steps=many", "  train.num_steps: must be a whole number"),
        ("loss=multi_turn_infonce", "loss.name: no loss named 'multi_turn_infonce'"),
        ("seed=-1", "  seed: must be greater than or equal to 0, not -1"),
        ("train.betas=3", "  train.betas: must be a list, [a, b], not 3"),
        ("train.betas=[0.9]", "  train.betas: has too few entries"),
        ("train.betas=[0.9, 0.9, 0.9]", "  train.betas: must have at most 2 entries, not [0.9, 0.9, 0.9]"),
        ("train.grad_cache=maybe", "  train.grad_cache: must be true or false, not 'maybe'"),
        ("train.grad_cache={a: 1}", "  train.grad_cache: must be true or false, not a mapping"),
        ("train.chunk_tokens=many", "  train.chunk_tokens: must be a whole number or 'auto', not 'many'"),
        (
            "data.scenes={shards: s, columns: txt}",
            "  data.scenes.columns: must be a mapping of keys, not 'txt'",
        ),
        (
            "data.scenes={shards: s, columns: {target_txt: a}}",
            "  data.scenes.columns.target_txt: no such key. Did you mean 'target_text'?",
        ),
        (
            "loss={name: matryoshka, loss: infonce, dims: [a]}",
            "1 problem\n  loss.dims.0: must be a whole number, not 'a'",
        ),
        ("train=3", "  train: must be a mapping of keys"),
        ("data={}", "  data: "),
    ],
)
def test_a_wrong_override_is_refused(refusal, override, expected):
    assert expected in refusal(RECIPE, override)


@pytest.mark.parametrize(
    ("override", "part", "expected"),
    [
        ("pooler.name=mean", "pooler", ("mean", {"projection_dim": None})),
        ("pooler.projection_dim=8", "pooler", ("turn_token", {"projection_dim": 8})),
        ("loss.loss.temperature=0.5", "loss", ("matryoshka", None)),
    ],
)
def test_an_override_reaches_into_a_component_written_as_its_name(load, override, part, expected):
    short = changed("pooler:\n  name: turn_token", "pooler: turn_token")
    short = short.replace(
        "  name: multiturn_infonce\n  temperature: 0.05", "  {name: matryoshka, loss: infonce, dims: [8]}"
    )
    ref = getattr(load(short, override), part)
    assert ref.name == expected[0]
    if expected[1] is not None:
        assert ref.dump() == {"name": ref.name, **expected[1]}
    else:
        assert ref.config.loss.config.temperature == 0.5


BOMBS = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 30)),
    "merge keys": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i}\n  <<: [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 30)),
    "repeated keys": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{k: *a{i - 1}, k: *a{i - 1}}}\n" for i in range(1, 40)),
    "a cycle": "a: &a [*a]",
    "a long number": "a: 1" + ":1" * 200_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_yaml_that_expands_is_refused_at_once(text):
    with pytest.raises(RecipeError, match="nested too deeply, or too large"):
        read_yaml("r.yaml", text)


def test_all_yaml_is_read_by_the_guarded_reader():
    root = Path(muco.__file__).parent
    readers = [path for path in root.rglob("*.py") if re.search(r"yaml\.\w*load", path.read_text())]
    # The tables of costs are shipped files, and only these are read there.
    names = {path.relative_to(root).as_posix() for path in readers}
    assert names == {"config/yaml_lines.py", "costs/tables.py"}


def test_a_problem_that_an_override_made_names_no_line_of_the_file(refusal):
    assert "\n  train.num_steps: must be" in refusal(RECIPE, "train.num_steps=0")


# What does not fit together


def test_merging_duplicates_needs_targets_of_their_own(load, refusal):
    merge = ("packer.context=causal", "loss.duplicates=merge")
    message = refusal(RECIPE, *merge)
    assert "loss `multiturn_infonce` as set here needs independent_targets" in message
    assert "no other component offers" in message
    load(RECIPE, *merge, "packer.targets=independent")
    load(RECIPE, "loss.duplicates=merge")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["sampler={name: task_homogeneous, run_length: 3}"],
         "sampler.run_length: 3 does not divide train.global_batch_size 8"),
        (["sampler.weights={scene: 1}"],
         "sampler.weights: no data set named 'scene'. Did you mean 'scenes'?"),
        (["sampler.weights={scenes: 0}"], "at least one data set needs a weight above zero"),
        (["sampler={name: task_homogeneous, run_length: 8, weights: {a: 1}}"], "no data set named 'a'"),
        (["sampler={name: mined, graphs: {scenes: g}, community_size: 3}"],
         "sampler.community_size: 3 does not divide train.global_batch_size 8"),
        (["sampler={name: mined, graphs: {scene: g}, community_size: 4}"],
         "sampler.graphs: no data set named 'scene'"),
        (["sampler={name: mined, graphs: {}, community_size: 4}"], "the data set 'scenes' has no graph"),
        (["loss={name: matryoshka, loss: infonce, dims: [16, 33]}"],
         "loss `matryoshka` as set here needs embeddings of at least 33 dimensions; the backbone and the "
         "pooler give 32"),
        (["loss={name: matryoshka, loss: infonce, dims: [16, 32]}", "pooler.projection_dim=24"], "give 24"),
        (["train.keep_best=scenes/mean"], "`keep_best` needs `validate_every`"),
        (["train.validate_every=2", "evaluate.suites=[]"], "`train.validate_every` needs `evaluate.suites`"),
        (["train.validate_every=2", "train.validate_suites=[scene]"],
         "`train.validate_suites`: no validated suite gives 'scene'. Did you mean 'scenes'?"),
        (["train.validate_every=2", "train.early_stopping={metric: mmeb/mean, patience: 2}"],
         "`train.early_stopping.metric`: no validated suite gives 'mmeb/mean'. Did you mean 'scenes/mean'?"),
        (["train.trackers=[mlflow, mlflow]"], "`trackers` names one twice"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(refusal, settings, expected):
    assert expected in refusal(RECIPE, *settings)


def test_dimensions_that_the_settings_do_not_tell_are_not_checked(load):
    loss = "loss={name: matryoshka, loss: infonce, dims: [4096]}"
    load(RECIPE, loss, "backbone={name: qwen_vl, pretrained: org/model}")
    load(RECIPE, loss, "pooler.projection_dim=4096")


class TextOnly(QwenVL):
    """A backbone that takes no image for a target."""

    Config = ComponentConfig

    @classmethod
    def offers(cls, config):
        return frozenset({"isolated_turns"})

    @classmethod
    def hidden_dim_of(cls, config):
        return None


@pytest.fixture
def with_text_only(load, refusal):
    """Add the backbone to our own components."""
    registry = Registry()
    registry.add(hooks, provider="muco")

    class Plugin:
        __name__ = "plugin"
        muco_contract = 2

        @hookimpl
        def muco_backbones(self):
            return {"text_only": f"{__name__}:TextOnly"}

    registry.add(Plugin(), provider="tests")
    return registry


TURNS_ALONE = ("data.scenes.source.turn_share=1", "evaluate.suites.0.tasks=[classification]")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (TURNS_ALONE[:1], "suite `scenes` as set here needs image_targets"),
        (TURNS_ALONE[1:], "source `scenes` as set here needs image_targets"),
    ],
)
def test_data_and_suites_need_a_backbone_that_takes_their_images(
    load, refusal, with_text_only, settings, expected
):
    text_only = ("backbone={name: text_only}",)
    assert expected in refusal(RECIPE, *text_only, *settings, registry=with_text_only)
    load(RECIPE, *text_only, *TURNS_ALONE, registry=with_text_only)


def test_context_needs_a_backbone_that_offers_it(refusal, with_text_only):
    settings = ("backbone={name: text_only}", *TURNS_ALONE, "packer.context=causal")
    message = refusal(RECIPE, *settings, registry=with_text_only)
    assert "packer `multi_turn` as set here needs causal_context" in message
    assert "(offered: isolated_turns)" in message


@pytest.mark.parametrize(
    ("direction", "context", "needed"),
    [
        ("bidirectional", "causal", "causal_context"),
        ("bidirectional_isolated", "causal", "causal_context"),
        ("bidirectional", "isolated", "isolated_turns"),
    ],
)
def test_no_turn_may_see_what_a_later_one_asks(load, refusal, direction, context, needed):
    settings = (f"backbone.attention_direction={direction}", f"packer.context={context}")
    message = refusal(RECIPE, *settings)
    assert f"packer `multi_turn` as set here needs {needed}" in message
    assert "`backbone.attention_direction: causal`" in message
    load(RECIPE, "backbone.attention_direction=bidirectional_isolated", "packer.context=isolated")


# Whatever is written


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_refused_with_an_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with pytest.raises(MucoError):
        load_recipe(str(path))


KEYS = ["name", "data", "scenes", "source", "train", "betas", "evaluate", "suites", "0", "1", "loss", "x", ""]


@given(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4), st.text("[]{}:,-0.1e&*!x'\" \n", max_size=8))
def test_any_override_is_applied_or_refused_with_an_error(tmp_path_factory, keys, value):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(RECIPE)
    with suppress(MucoError):
        load_recipe(str(path), [f"{'.'.join(keys)}={value}"])


# The schema for editors


@pytest.fixture(scope="module")
def schema(registry):
    schema = recipe_schema(registry)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_schema_accepts_shipped_recipes_and_their_dumps(schema, name):
    schema.validate(yaml.safe_load(find_recipe(name).read_text()))
    schema.validate(load_recipe(name).dump())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", -1),
        ("sed", 0),
        ("train.num_step", 1),
        ("loss.name", "multi_turn_infonce"),
        ("loss.temprature", 1),
        ("backbone.random_init.hiden_dim", 1),
        ("pooler", None),
        ("pooler", "meen"),
        ("sampler", "task_homogeneous"),  # has a setting without a default
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(schema, path, value):
    values = yaml.safe_load(RECIPE)
    schema.validate(values)
    *parents, last = path.split(".")
    container = values
    for parent in parents:
        container = container[parent]
    container[last] = value
    assert not schema.is_valid(values)
    with pytest.raises(RecipeError):
        validate_settings(Recipe, values, title="r.yaml")


@pytest.mark.parametrize(("path", "value"), [("pooler", "mean"), ("evaluate", {"suites": ["scenes"]})])
def test_the_schema_accepts_a_name_that_stands_for_a_mapping(schema, path, value):
    values = {**yaml.safe_load(RECIPE), path: value}
    schema.validate(values)
    validate_settings(Recipe, values, title="r.yaml")


class WithCallable(QwenVL):
    class Config(ComponentConfig):
        hook: Callable[[], int]


def test_settings_without_a_schema_are_refused(with_text_only):
    class Plugin:
        __name__ = "other"
        muco_contract = 2

        @hookimpl
        def muco_backbones(self):
            return {"with_callable": f"{__name__}:WithCallable"}

    with_text_only.add(Plugin(), provider="muco-shapes 0.3.1")
    with pytest.raises(
        PluginError, match=r"backbone 'with_callable' \(muco-shapes 0.3.1\): its `Config` has"
    ):
        recipe_schema(with_text_only)


def test_the_schema_explains_its_keys(schema):
    options = schema.schema["$defs"]
    assert options["TrainSettings"]["properties"]["num_steps"]["description"]
    assert options["loss.infonce"]["properties"]["temperature"]["description"]


# Labels of suites


TWO_SUITES = changed(
    "num_queries: 8", "num_queries: 8\n    - name: scenes\n      label: hard\n      num_queries: 9"
)


def test_a_recipe_can_list_a_suite_twice_under_labels(load, registry):
    recipe = load(TWO_SUITES)
    assert [suite.label for suite in recipe.evaluate.suites] == ["scenes", "hard"]
    dumped = recipe.dump()["evaluate"]["suites"]
    assert [(suite["name"], suite.get("label")) for suite in dumped] == [("scenes", None), ("scenes", "hard")]
    Draft202012Validator(recipe_schema(registry)).validate(recipe.dump())


@pytest.mark.parametrize(
    ("label", "message"),
    [("scenes", "listed twice: scenes. Give each a `label` of its own"),
     ("../x", "label '../x': use at most"),
     ("[1]", "label \\[1\\]: use at most")],
)  # fmt: skip
def test_a_label_names_a_file_and_one_result(refusal, label, message):
    assert re.search(message, refusal(TWO_SUITES.replace("hard", label)))
