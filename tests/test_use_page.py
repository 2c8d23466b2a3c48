"""The snippets of docs/use.md and README.md run in order, on a small model and a few pictures."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from muco.commands.main import app
from muco.config.load import load_recipe
from muco.vectors.store import VectorStore
from tests.helpers.models import write_model
from tests.helpers.small import QUICK, picture

PAGE = Path(__file__).parent.parent / "docs" / "use.md"
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
TOOLS = {
    name: code for _, code in BLOCKS for name in ("duckdb", "faiss", "lancedb", "qdrant_client")
    if re.match(rf"(import|from) {name}\b", code)
}  # fmt: skip


def run_shell(block: str) -> None:
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "muco"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (line, result.output, result.exception)


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """What the snippets of the page have defined, in the folder that they ran in."""
    folder = tmp_path_factory.mktemp("use")
    write_model(folder / "runs" / "quickstart")
    (folder / "photos").mkdir()
    for number, colour in enumerate(("red", "blue", "green"), start=1):
        (folder / "photos" / f"{number}.jpg").write_bytes(picture(colour, (56, 56)).data)
    (folder / "products.csv").write_text("sku,title,photo\na,a red disc,photos/1.jpg\nb,a blue disc,\n")
    recipe = load_recipe("quickstart", [*QUICK, "evaluate.suites.0.num_queries=8"])
    (folder / "my_recipe.yaml").write_text(yaml.safe_dump(recipe.dump()))
    with contextlib.chdir(folder):
        known: dict[str, Any] = {"folder": folder}
        for language, code in BLOCKS:
            if language == "sh":
                run_shell(code)
            elif code not in TOOLS.values():
                exec(compile(code, str(PAGE), "exec"), known)
        yield known


def test_the_snippets_run(names):
    assert names["vectors"].shape == (2, 32)
    assert names["turns"].shape == (3, 32)
    assert names["result"].summary.steps == 8
    assert (names["folder"] / "page.html").is_file()
    assert (names["folder"] / "products.parquet").is_file()


def test_the_snippet_of_the_readme_runs(names):
    (names["folder"] / "photo.jpg").write_bytes(picture("red", (56, 56)).data)
    text = (PAGE.parent.parent / "README.md").read_text(encoding="utf-8")
    (code,) = (
        block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "muco.load" in block
    )
    known: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), known)
    assert known["vectors"].shape == (2, 32)


@pytest.mark.parametrize("tool", TOOLS)
def test_the_store_opens_in_other_tools(tool, names):
    if not find_spec(tool):
        pytest.skip(f"{tool} is not installed")
    store = VectorStore.open(Path("photos.parquet"))
    known = {**names, "store": store, "query": names["model"].encode("a red circle")[0].tolist()}
    exec(compile(TOOLS[tool], str(PAGE), "exec"), known)
    nearest = [hit.id for hit in names["model"].search("photos.parquet", "a red circle", k=3)]
    answers = {
        "duckdb": lambda: [row[0] for row in known["duckdb"].execute(
            "select id from 'photos.parquet' order by list_inner_product(vector, ?) desc", [known["query"]]
        ).fetchall()],
        "faiss": lambda: [store.rows[row].id for row in known["rows"][0] if row >= 0],
        "lancedb": lambda: [hit["id"] for hit in known["hits"]],
        "qdrant_client": lambda: [hit.payload["id"] for hit in known["hits"]],
    }  # fmt: skip
    assert answers[tool]() == nearest
