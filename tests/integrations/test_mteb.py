"""mteb evaluates a model of muco, and muco scores a task of mteb alike."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import muco
from muco.commands.evaluate import evaluate
from muco.core.errors import DataError, MucoError
from muco.plugins.datasets.mteb.suite import Mteb, _contents
from muco.testing import check_suite
from tests.helpers.models import write_model
from tests.helpers.small import picture

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of mteb, datasets and scikit-learn

NUMBER = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def encoder(model):
    from muco.integrations.mteb import MucoEncoder

    return MucoEncoder(muco.load(model))


@pytest.fixture
def task(monkeypatch):
    """A task of mteb that finds images by texts, on pictures drawn here; `mteb.get_task` returns it."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Discs(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Discs", dataset={"path": "none", "revision": "1"}, description="", reference=None,
            type="Any2AnyRetrieval", category="t2i", modalities=["text", "image"], eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="ndcg_at_10", prompt={"query": "Find the picture:"},
        )  # fmt: skip

        def load_data(self, *_: Any, **__: Any) -> None:
            images = [Image.open(io.BytesIO(picture("red", (56 + row, 56)).data)) for row in range(NUMBER)]
            self.dataset = {"default": {"test": {
                "corpus": Dataset.from_dict({"id": [f"d{row}" for row in range(NUMBER)], "image": images}),
                "queries": Dataset.from_list(
                    [{"id": f"q{row}", "text": f"disc {row}"} for row in range(NUMBER)]
                ),
                "relevant_docs": {f"q{row}": {f"d{row}": 1, f"d{-row % 7}": 1} for row in range(NUMBER)},
                "top_ranked": None,
            }}}  # fmt: skip
            self.data_loaded = True

    monkeypatch.setattr(mteb, "get_task", lambda name: Discs())
    return Discs()


def test_all_text_and_image_mocks_pass(encoder):
    results = mteb.mock_run(encoder).task_results
    errors = {name: each.exception for name, each in results.items() if hasattr(each, "exception")}
    passed = [name for name, each in results.items() if each is not None]
    assert not errors
    assert {"MockRetrievalTask", "MockAny2AnyRetrievalI2T", "MockVisionCentricQA"} <= set(passed)
    assert len(passed) >= 40
    assert encoder.used["MockRetrievalTask"]["document"] == ""


def test_muco_scores_a_task_as_mteb_does(encoder, model, task, tmp_path):
    (result,) = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False).task_results
    theirs = result.scores["test"][0]
    overrides = ['evaluate.suites.0.tasks=["Discs"]', "backbone.dtype=float32"]
    evaluate(str(model), "mteb", overrides=overrides, to=tmp_path / "r", console=Console(quiet=True))
    ours = muco_scores(tmp_path / "r" / "eval" / "mteb.json")
    assert ours["metric"] == "ndcg@10"
    assert ours["notes"] == ["before each query: 'Find the picture: '"]
    assert ours["score"] == pytest.approx(theirs["ndcg_at_10"], abs=1e-5)
    for name in ("ndcg@5", "recall@1", "recall@10"):
        assert ours["more"][name] == pytest.approx(theirs[name.replace("@", "_at_")], abs=1e-5)
    assert 0 < ours["score"] < 1
    assert encoder.used["Discs"] == {"query": "Find the picture: ", "document": ""}


def muco_scores(path) -> dict[str, Any]:
    import json

    return json.loads(path.read_text())["tasks"]["Discs"]


def test_the_suite_keeps_the_contract(task, registry):
    check_suite(registry, "mteb", {"tasks": ["Discs"]})


def test_the_instruction_is_in_the_user_turn(encoder, model, task):
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    texts = DataLoader([{"text": "a"}, {"text": "b"}], batch_size=2)
    options = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default"}
    vectors = encoder.encode(texts, prompt_type=PromptType.query, **options)
    expected = muco.load(model).encode(["a", "b"], instruction="Find the picture: ")
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert vectors.dtype == np.float32


def test_suite_and_encoder_read_transparent_images_alike_and_items_may_lack_one_side(encoder, model, task):
    from datasets import Dataset
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    clear = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    white = Image.new("RGB", (56, 56), "white")
    batch = [{"image": clear, "text": ""}, {"image": None, "text": "a"}, {"image": None, "text": ""}]
    loader = DataLoader(batch, batch_size=3, collate_fn=lambda rows: {
        key: [row[key] for row in rows] for key in ("image", "text")
    })  # fmt: skip
    options = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default"}
    vectors = encoder.encode(loader, prompt_type=PromptType.document, **options)
    expected = muco.load(model).encode([white, "a", " "])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    (content,) = _contents(Dataset.from_dict({"id": ["d"], "image": [clear]}), [0], ["image"])
    np.testing.assert_allclose(muco.load(model).encode(content), expected[:1], atol=1e-6)


def test_a_task_that_muco_cannot_rank_is_an_error_in_words(task):
    def only_task(**changes: Any) -> Any:
        task.load_data()
        split = task.dataset["default"]["test"]
        split |= changes
        return Mteb(Mteb.Config(tasks=("Discs",)))._task("Discs", task, split)

    listed = {f"q{row}": sorted({f"d{row}", f"d{-row % 7}"}) for row in range(NUMBER)}
    for changes, message in (
        ({"top_ranked": {**listed, "q3": ["d3", "nope"]}}, "'nope' has no candidates, or is one and not"),
        ({"top_ranked": {"q0": ["d0"]}}, "'q1' has no candidates"),
        ({"top_ranked": {**listed, "q3": ["d3"]}}, "a right answer that is no candidate. Evaluate it with"),
        ({"relevant_docs": {"q0": {"d0": 0}}}, "no query has a right answer"),
    ):
        with pytest.raises(DataError, match=message):
            only_task(**changes)
    few = only_task(relevant_docs={"q0": {"d0": 1}})
    assert few.warnings == ("Discs: 23 queries without a right answer are left out",)


def test_other_kinds_of_task_and_unknown_names_are_refused(model, tmp_path):
    def run(name: str) -> None:
        overrides = [f'evaluate.suites.0.tasks=["{name}"]']
        evaluate(str(model), "mteb", overrides=overrides, to=tmp_path / "r", console=Console(quiet=True))

    with pytest.raises(DataError, match=r"Banking77Classification is no retrieval task"):
        run("Banking77Classification")
    with pytest.raises(MucoError, match="mteb has no task 'Nope'"):
        run("Nope")
    with pytest.raises(DataError, match="ArguAna leaves candidates out of the ranking"):
        run("ArguAna")
