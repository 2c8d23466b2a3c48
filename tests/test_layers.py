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
ENGINE = ("muco.data", "muco.training", "muco.evaluation")

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


def lies_in(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def layers(module: str) -> tuple[str, ...]:
    """Return the packages of muco that a module may import from."""
    if lies_in(module, "muco.core"):
        return ("muco.core",)
    if lies_in(module, "muco.testing"):
        return ("muco.core", "muco.testing")
    if lies_in(module, "muco.plugins"):
        _, _, *kind_and_component = module.split(".")
        is_package = (
            len(kind_and_component) > 1 and (PACKAGE / "plugins" / Path(*kind_and_component[:2])).is_dir()
        )
        own = (".".join(["muco.plugins", *kind_and_component[:2]]),) if is_package else ()
        return ("muco.core", "muco.plugins._shared", *own)
    if lies_in(module, *ENGINE):
        return ("muco.core", *ENGINE)
    return ("muco",)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_its_own_layer_and_those_below(path):
    allowed = layers(name_of(path))
    ours = [name for name in imports(parse(path)) if lies_in(name, "muco")]
    assert [name for name in ours if not lies_in(name, *allowed)] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_plugins_are_reached_by_their_names_in_the_registry_alone(path):
    """Neither an import nor a string leads to a plugin, but for the strings of the hooks."""
    if lies_in(name_of(path), "muco.plugins"):
        return
    tree = parse(path)
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert not [name for name in imports(tree) if lies_in(name, "muco.plugins")]
    assert not [text for text in texts if isinstance(text, str) and text.startswith("muco.plugins")]


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=name_of)
def test_core_stands_on_few_libraries(path):
    """Read at the top of the file: what a function imports late, Pillow to decode an image, is its own."""
    statements = [node for node in parse(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    tops = {name.split(".")[0] for node in statements for name in imports(node)}
    foreign = tops - sys.stdlib_module_names - {"muco"}
    assert foreign <= CORE_MAY_IMPORT | ({"torch"} if path.stem in CORE_WITH_TENSORS else set())


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("muco.plugins.losses.infonce", ("muco.core", "muco.plugins._shared")),
        ("muco.plugins.hooks", ("muco.core", "muco.plugins._shared")),
        (
            "muco.plugins.backbones.qwen_vl.scratch",
            ("muco.core", "muco.plugins._shared", "muco.plugins.backbones.qwen_vl"),
        ),
        ("muco.testing.contracts", ("muco.core", "muco.testing")),
        ("muco.data.read", ("muco.core", *ENGINE)),
    ],
)
def test_the_layers_are_those_of_the_design(module, allowed):
    assert layers(module) == allowed


def test_an_import_is_found_wherever_it_stands():
    text = "if x:\n import a.b as c\ndef f():\n from muco.plugins import losses"
    assert list(imports(ast.parse(text))) == ["a.b", "muco.plugins.losses"]
