"""The documentation against the code: names, settings, defaults, commands, examples."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

import muco
from muco.commands.main import app
from muco.config.recipe import DatasetSettings, EvaluateSettings, Recipe, TrainSettings
from muco.core import Content, Pair, Sample
from muco.core.component import KINDS, Kind
from muco.core.errors import PluginError, RecipeError
from muco.core.hookspecs import CONTRACT
from muco.core.registry import Registry
from muco.generate.settings import Generation
from muco.testing import check_pooler

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

QUICKSTART_LINE = (
    "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/muco-run recipes/quickstart.yaml"
)
TESTS_LINE = "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest -n auto"

RECIPE_TABLES: list[tuple[str, type[BaseModel]]] = [
    ("Top level", Recipe),
    ("data", DatasetSettings),
    ("train", TrainSettings),
    ("evaluate", EvaluateSettings),
]


def page_id(page: Path) -> str:
    return page.name


def component_page(kind: Kind) -> Path:
    return DOCS / "components" / f"{kind}{'es' if kind == 'loss' else 's'}.md"


def sections(page: Path) -> dict[str, str]:
    """Return the text below each heading of the second level."""
    _, *parts = re.split(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def table(text: str) -> dict[str, str]:
    """Return key and default of the rows of the settings tables: those headed `| setting | default |`."""
    rows: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[:2] in (["setting", "default"], ["key", "default"]):
            inside = True
        elif inside and cells[0].startswith("`"):
            assert cells[0] not in rows, f"{cells[0]} is listed twice"
            rows[cells[0].strip("`")] = cells[1]
    return rows


def settings(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted name and default (`...` where there is none) of each setting, nested ones too."""
    plain = config.model_construct().model_dump(mode="json")
    for name, field in config.model_fields.items():
        yield prefix + name, ... if field.is_required() else plain[name]
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            nested = isinstance(part, type) and issubclass(part, BaseModel)
            if nested and part not in (TrainSettings, EvaluateSettings, DatasetSettings):
                yield from settings(part, f"{prefix}{name}.")


def check_table(config: type[BaseModel], rows: dict[str, str]) -> None:
    """Check that the rows are exactly the settings, and that defaults in backticks are right."""
    expected = dict(settings(config))
    assert rows.keys() == expected.keys()
    for name, default in expected.items():
        documented = rows[name]
        if default is ...:
            assert documented == "required", name
        elif documented.startswith("`"):
            assert yaml.safe_load(documented.strip("`")) == default, name
        else:
            assert re.fullmatch(r"optional|all( \w+)?", documented), f"{name}: {documented}"


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """Return (info string, text) of each fenced block."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Return the words of each `muco` and `muco-run` command, in code blocks and within lines."""
    text = page.read_text(encoding="utf-8")
    spans = [*re.findall(r"`(muco(?:-run)? [^`\n]+)`", text)]
    for _, block in code_blocks(page):
        block = block.replace("\\\n", "")  # a command may go over several lines
        spans += re.findall(r"^\s*(?:\$ )?(muco(?:-run)? [^#\n]+)", block, re.MULTILINE)
    return [shlex.split(span) for span in spans]


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_has_a_heading_and_every_heading_a_component(kind, registry):
    ours = {entry.name for entry in registry.entries(kind) if entry.provider.startswith("muco ")}
    assert set(sections(component_page(kind))) == ours


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_documented_with_its_default(kind, registry):
    found = sections(component_page(kind))
    for entry in registry.entries(kind):
        if entry.name in found:
            check_table(registry.component(kind, entry.name).Config, table(found[entry.name]))


@pytest.mark.parametrize(("heading", "model"), RECIPE_TABLES)
def test_every_key_of_a_recipe_is_documented_with_its_default(heading, model):
    check_table(model, table(sections(DOCS / "recipes.md")[heading]))


def test_every_setting_of_a_generation_is_documented_with_its_default():
    check_table(Generation, table(sections(DOCS / "generate.md")["Settings"]))


def test_every_setting_has_a_docstring():
    undescribed = [
        f"{model.__name__}.{name}"
        for _, model in RECIPE_TABLES
        for name, field in model.model_fields.items()
        # A component's key is explained by its kind.
        if not field.description and name not in (*KINDS, "train", "evaluate", "data")
    ]
    assert undescribed == []


def test_the_readme_has_both_set_up_lines_each_alone_in_a_block():
    blocks = [text.strip() for _, text in code_blocks(ROOT / "README.md")]
    assert blocks.count(QUICKSTART_LINE) == 1
    assert blocks.count(TESTS_LINE) == 1
    assert [block for block in blocks if "pip install" in block] == [QUICKSTART_LINE, TESTS_LINE]


NOT_MUCO = {"muco.json", "muco.neighbours", "tests/test_projected.py"}
"""Not of this package: a file of a model folder, a file format, a path in an example."""


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=page_id)
def test_modules_and_paths_that_pages_name_exist(page):
    """The CHANGELOG also names modules that were moved."""
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"\bmuco(?:\.[A-Za-z_]\w*)+", text)) - NOT_MUCO:
        pkgutil.resolve_name(name)
    folders = "muco|tests|tools|benchmarks|examples|\\.ci"
    paths = re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w)(?![\w<])", text)
    assert [path for path in set(paths) - NOT_MUCO if not (ROOT / path).exists()] == []


def test_the_readme_shows_the_current_contract():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^muco_contract = (\d+)$", text, re.MULTILINE) == [str(CONTRACT)]


def test_ci_finds_the_line_of_the_readme():
    inside = [line for _, text in code_blocks(ROOT / "README.md") for line in text.splitlines()]
    assert [line for line in inside if "bin/pytest" in line] == [TESTS_LINE]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_pages_name_only_commands_that_exist(page):
    for words in commands(page):
        command: Any = get_command(app)
        if words[0] == "muco-run":
            command, words = command.commands["run"], words[1:]
        else:
            words = words[1:]
            while hasattr(command, "commands"):
                assert words, page
                assert words[0] in command.commands, f"{page.name}: no subcommand {words[0]!r}"
                command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word in known | {"--help"}, f"{page.name}: no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_recipes_that_pages_run_are_shipped_and_their_overrides_fit(page):
    from muco.config.load import load_recipe

    for words in commands(page):
        if words[0] != "muco-run" or "quickstart" not in words[1] or "multi_turn_infonce" in str(words):
            continue
        overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
        load_recipe(words[1], [each for each in overrides if "projected" not in each])


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "recipes.md"], ids=page_id)
def test_the_recipe_shown_is_valid(page):
    from muco.config.load import validate_settings
    from muco.config.recipe import Recipe

    block = next(text for info, text in code_blocks(page) if info == "yaml")
    recipe = validate_settings(Recipe, yaml.safe_load(block), title=page.name)
    assert recipe.train.learning_rate == 0.001


def test_the_errors_that_recipes_md_shows_are_those_one_gets(ours):
    from muco.config.load import load_recipe

    block = next(text for _, text in code_blocks(DOCS / "recipes.md") if text.startswith("$ "))
    command, _, message = block.partition("\n")
    words = shlex.split(command)
    overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(words[2], overrides, registry=ours)
    pattern = re.escape(message.strip()).replace(re.escape("..."), ".*")  # the page shortens a long list
    assert re.fullmatch(pattern, str(caught.value))


@pytest.fixture
def ours() -> Registry:
    """muco's own components, whatever else is installed."""
    registry = Registry()
    registry.add(importlib.import_module("muco.plugins.hooks"), provider="muco 0.1.0")
    return registry


@pytest.fixture
def example(tmp_path, monkeypatch) -> Iterator[Any]:
    """The package of plugins.md, importable; returns a function that adds it to a registry."""
    package = tmp_path / "muco_projected"
    package.mkdir()
    (package / "__init__.py").touch()
    for info, text in code_blocks(DOCS / "plugins.md"):
        if found := re.fullmatch(r'python title="muco_projected/(.+)"', info):
            (package / found[1]).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def registered(*, change: tuple[str, str] = ("", ""), into: Registry | None = None) -> Registry:
        hooks = types.ModuleType("muco_projected.hooks")
        exec((package / "hooks.py").read_text().replace(*change), vars(hooks))
        plugins = into or Registry()
        plugins.add(hooks, provider="muco-projected 0.1.0")
        return plugins

    yield registered
    for name in [name for name in sys.modules if name.startswith("muco_projected")]:
        del sys.modules[name]


def test_the_example_plugin_keeps_the_contract(example):
    check_pooler(example(), "projected", {"embedding_dim": 8})


@pytest.mark.parametrize(
    "change",
    [
        ("muco_contract = 2", ""),
        ("muco_contract = 2", "muco_contract = 3"),
        ("muco_contract = 2", "muco_contract = 1"),
        ("def muco_poolers", "def muco_pooler"),
        ('"projected":', '"mean":'),
        (":Projected", ":Projection"),
    ],
    ids=lambda change: change[1] or "none",
)
def test_the_errors_that_plugins_md_quotes_are_those_one_gets(example, ours, change):
    with pytest.raises(PluginError) as caught:
        example(change=change, into=ours).component("pooler", "projected")
    assert str(caught.value) in (DOCS / "plugins.md").read_text(encoding="utf-8")


def test_the_example_loss_keeps_the_contract(example):
    hook, test = (
        next(text for _, text in code_blocks(DOCS / "plugins.md") if part in text)
        for part in ("def muco_losses", "check_loss(")
    )
    names: dict[str, Any] = {"registry": example(change=("@hookimpl", f"{hook}\n\n@hookimpl"))}
    exec(test.replace("default_registry()", "registry"), names)
    names["test_keeps_the_contract"]()


def test_the_example_packer_keeps_the_contract_and_writes_the_task(example):
    hook, test = (
        next(text for _, text in code_blocks(DOCS / "plugins.md") if part in text)
        for part in ("def muco_packers", "check_packer(")
    )
    registry = example(change=("@hookimpl", f"{hook}\n\n@hookimpl"))
    names: dict[str, Any] = {"registry": registry}
    exec(test.replace("default_registry()", "registry"), names)
    names["test_keeps_the_contract"]()
    cls = registry.component("packer", "task_first")
    sample = Sample("0", "data", (), (Pair("color", (Content("which?"),), Content("red")),))
    packed = cls(cls.Config()).pack(sample, batch_random=Random(0), sample_random=Random(0))
    assert [dialogue.turns[0].messages[0].content.text for dialogue in packed.queries] == ["color: which?"]


def test_the_table_of_the_packers_module_names_what_is_public():
    from muco.plugins.packers import base

    rows = sections(DOCS / "plugins.md")["Write a packer"]
    named = {text.removeprefix("BasePacker.") for text in re.findall(r"^\| `([\w.]+)", rows, re.MULTILINE)}
    public = {name for name, each in vars(base).items() if getattr(each, "__module__", "") == base.__name__}
    own = {name for name in vars(base.BasePacker) if not name.startswith("_")}
    assert named == public | own | {"SYSTEM"}


def test_the_table_of_kinds_names_hooks_and_checks_that_exist():
    import muco.testing
    from muco.core.hookspecs import HOOKS

    rows = sections(DOCS / "plugins.md")["What to implement for each kind"]
    assert set(re.findall(r"`(muco_\w+)`", rows)) == set(HOOKS.values())
    assert set(re.findall(r"`(check_\w+)`", rows)) == set(muco.testing.__all__)


def test_the_errors_that_errors_md_lists_are_in_the_code():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "muco").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a message may go over several lines
    rows = re.findall(r"^\| `(.*?)` \|", (DOCS / "errors.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) > 10
    assert [message for message in rows if message not in code] == []


def command_names() -> list[str]:
    """Return every command and subcommand, `muco data check`."""

    def below(command: Any, name: str) -> Iterator[str]:
        for own, each in getattr(command, "commands", {}).items():
            yield f"{name} {own}"
            yield from below(each, f"{name} {own}")

    return list(below(get_command(app), "muco"))


@pytest.mark.process
def test_the_site_builds_without_a_warning_and_describes_all_commands_and_public_names(tmp_path):
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+rel="(?:stylesheet|preload)"[^>]+href="https?:'
    )
    pages = list((tmp_path / "site").rglob("*.html"))
    assert pages
    commands = (tmp_path / "site" / "commands.html").read_text(encoding="utf-8")
    assert [name for name in command_names() if f'id="{name.replace(" ", "-")}"' not in commands] == []
    api = (DOCS / "api.md").read_text(encoding="utf-8")
    undescribed = [name for name in muco.__all__ if not re.search(rf"[.]{name}$", api, re.M)]
    assert undescribed == ["__version__", "MucoError", "run"]  # errors are described by what raises them
    assert [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []
