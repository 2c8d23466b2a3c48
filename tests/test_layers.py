"""Who imports whom, read from the import statements."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import muco

PACKAGE = Path(muco.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS_FOLDER = Path(__file__).parent
TESTS = sorted(TESTS_FOLDER.rglob("test_*.py"))
ENGINE = (
    "muco.ablation",
    "muco.console",
    "muco.costs",
    "muco.data",
    "muco.distributed",
    "muco.embedder",
    "muco.evaluation",
    "muco.export",
    "muco.generate",
    "muco.job",
    "muco.model",
    "muco.report",
    "muco.run_folder",
    "muco.training",
    "muco.vectors",
)
"""Reaches plugins through the registry only."""

CORE_MAY_IMPORT = {"pydantic", "pydantic_core", "pluggy", "yaml"}
CORE_WITH_TENSORS = {"backbone", "encoder", "loss", "pairs", "pooler", "turns"}
"""Files of core whose signatures hold tensors; only they may import torch."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of all that is imported, `from a import b` as `a.b`, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the layer; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_in(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def layers(module: str) -> tuple[str, ...]:
    """Return the packages of muco that a module may import from."""
    if is_in(module, "muco.core"):
        return ("muco.core",)
    if is_in(module, "muco.io"):
        return ("muco.core", "muco.io")
    if is_in(module, "muco.config"):
        return ("muco.core", "muco.config", "muco.io")
    if is_in(module, "muco.testing"):
        return ("muco.core", "muco.testing")
    if is_in(module, "muco.plugins"):
        return ("muco.core", "muco.io", "muco.plugins")
    if is_in(module, *ENGINE):
        return ("muco.core", "muco.config", "muco.io", "muco.__version__", *ENGINE)
    return ("muco",)


def components() -> dict[str, str]:
    """Return the module of each component, with the folder whose other files it may use."""
    texts = [
        node.value
        for node in ast.walk(parse(PACKAGE / "plugins" / "hooks.py"))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    modules = {text.partition(":")[0] for text in texts if text.startswith("muco.plugins.")}
    found = {}
    for module in modules:
        is_package = (PACKAGE.parent / Path(*module.split("."))).is_dir()
        found[module] = module if is_package else module.rpartition(".")[0]
    return found


def home_of(module: str) -> str:
    """Return the component that a module of plugins is, or is part of; empty for a helper of several."""
    for component, folder in components().items():
        is_package = component == folder
        if module == component or (is_package and is_in(module, component)):
            return component
    return ""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_its_own_layer_and_those_below(path):
    allowed = layers(name_of(path))
    ours = [name for name in imports(parse(path)) if is_in(name, "muco")]
    assert [name for name in ours if not is_in(name, *allowed)] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_plugins_are_reached_only_through_the_registry(path):
    """Neither an import nor a string leads to a plugin, but for the strings of the hooks."""
    if is_in(name_of(path), "muco.plugins"):
        return
    tree = parse(path)
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert not [name for name in imports(tree) if is_in(name, "muco.plugins")]
    assert not [text for text in texts if isinstance(text, str) and text.startswith("muco.plugins")]


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=name_of)
def test_core_stands_on_few_libraries(path):
    """Read at the top of the file: what a function imports late, Pillow to decode an image, is its own."""
    statements = [node for node in parse(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    tops = {name.split(".")[0] for node in statements for name in imports(node)}
    foreign = tops - sys.stdlib_module_names - {"muco"}
    assert foreign <= CORE_MAY_IMPORT | ({"torch"} if path.stem in CORE_WITH_TENSORS else set())


@pytest.mark.parametrize(
    "path", [path for path in MODULES if is_in(name_of(path), "muco.plugins")], ids=name_of
)
def test_no_component_imports_another_component(path):
    """A helper of the component's own folder is free; a helper of several components imports none."""
    module = name_of(path)
    own = home_of(module)
    reached = {home_of(name) for name in imports(parse(path)) if is_in(name, "muco.plugins")}
    assert reached <= {own, ""}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_imports_the_commands(path):
    """But `python -m muco`, and `muco.run`, which is resolved on use."""
    if name_of(path) == "muco.__main__" or is_in(name_of(path), "muco.commands"):
        return
    assert not [name for name in imports(parse(path)) if is_in(name, "muco.commands")]


def test_no_circle_of_imports():
    """Late imports within functions are counted too."""
    known = {name_of(path) for path in MODULES}
    arrows: dict[str, set[str]] = {}
    for path in MODULES:
        found = {name if name in known else name.rpartition(".")[0] for name in imports(parse(path))}
        arrows[name_of(path)] = (found & known) - {"muco", name_of(path)}
    while leaves := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows


def test_an_import_is_found_wherever_it_stands():
    text = "if x:\n import a.b as c\ndef f():\n from muco.plugins import losses"
    assert list(imports(ast.parse(text))) == ["a.b", "muco.plugins.losses"]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(TESTS_FOLDER).as_posix())
def test_no_test_imports_another_test(path):
    assert not [name for name in imports(parse(path)) if name.startswith("tests.") and ".test_" in name]
