from __future__ import annotations

import pytest

from muco.config.load import validate_settings
from muco.config.recipe import Evaluation
from muco.core.errors import DataError, RecipeError
from muco.plugins.datasets.mmeb.suite import DATA_SETS, MMEB
from muco.testing import check_suite
from tests.helpers.eval_files import IMG, mmeb_row, write_mmeb, write_parquet

SOME = ["N24News", "OK-VQA", "WebQA", "MSCOCO_i2t", "VisDial", "CIRR", "OVEN", "MSCOCO"]


def suite_of(folder, **settings) -> MMEB:
    return MMEB(MMEB.Config(data=str(folder), **settings))


def test_the_benchmark_has_36_data_sets_20_of_them_in_domain():
    assert suite_of("x").members() == {
        "mean": 36, "ind": 20, "ood": 16, "meta_classification": 10, "meta_vqa": 10,
        "meta_retrieval": 12, "meta_grounding": 4,
    }  # fmt: skip


@pytest.mark.parametrize("second", [False, True])
def test_the_suite_keeps_the_contract(registry, tmp_path, second):
    write_mmeb(tmp_path, SOME, second=second)
    check_suite(registry, "mmeb", {"data": str(tmp_path)})


def test_both_layouts_and_a_zip_give_the_same_tasks(tmp_path):
    kinds = {"first": {}, "second": {"second": True}, "zipped": {"zipped": True}}
    found = {}
    for name, settings in kinds.items():
        write_mmeb(tmp_path / name, SOME, **settings)
        found[name] = {task.name: task for task in suite_of(tmp_path / name).tasks()}
    assert list(found["first"]) == [name for name in DATA_SETS if name in SOME]
    for name, task in found["first"].items():
        for other in (found["second"][name], found["zipped"][name]):
            assert list(task.queries) == list(other.queries), name
            assert list(task.pool) == list(other.pool), name
            assert (task.candidates, task.relevant) == (other.candidates, other.relevant)


def test_texts_lose_the_placeholder_and_doublets_of_the_right_answer_are_right(tmp_path):
    write_mmeb(tmp_path, ["WebQA", "N24News"])
    news, web = suite_of(tmp_path).tasks()
    assert web.queries[0].text == "\nRepresent the WebQA query: question 0"
    assert web.queries[0].images == ()
    assert web.pool[0].text == "Represent the given image. a red disc"
    assert len(web.pool[0].images) == 1
    assert news.queries[1].text == "Represent the N24News query: question 1"
    assert len(news.queries[1].images) == 1
    assert news.pool[0].text == "red"
    assert web.candidates is not None
    assert len(web.candidates[0]) == 5  # of six in the file, two alike
    assert web.relevant[0] == web.candidates[0][:1]
    assert (news.meta_task, news.groups) == ("classification", ("ind",))


def test_candidates_on_one_image_are_distinguished_by_their_captions(tmp_path):
    row, images = mmeb_row("RefCOCO-Matching", 0)
    row["tgt_img_path"] = [images[0]] * 3
    row["tgt_text"] = [f"{IMG}\ncaption {k}\n" for k in range(3)]
    write_parquet(tmp_path / "RefCOCO-Matching/test.parquet", [row])
    from tests.helpers.eval_files import write_images

    write_images(tmp_path, images)
    (task,) = suite_of(tmp_path).tasks()
    assert [content.text for content in task.pool] == ["caption 0", "caption 1", "caption 2"]


def changed(key, value):
    def change(folder):
        row, _ = mmeb_row("OK-VQA", 0)
        row[key] = value
        write_parquet(folder / "OK-VQA/test.parquet", [row])

    return change


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "OK-VQA/test-00000-of-00001.parquet").unlink(), "no files of"),
        (changed("tgt_text", ["a"]), r"row 1: 1 texts and 6 image paths"),
        (changed("tgt_text", "[1, 2"), "row 1: tgt_text must be a list of texts"),
        (changed("tgt_text", "__import__('os')"), "tgt_text must be a list of texts"),
        (changed("qry_text", True), "row 1: qry_text is a bool, not text"),
        (changed("qry_img_path", ["a.png"]), "row 1: qry_img_path is a list, not text"),
        (changed("qry_img_path", "../outside.png"), "would lie outside"),
        (changed("qry_img_path", "OK-VQA/none.png"), r"1 images are missing; image OK-VQA/none.*images\.zip"),
        (
            lambda folder: (folder / "OK-VQA/test-00000-of-00001.parquet").write_bytes(b"PAR1"),
            "no Parquet file",
        ),
    ],
)
def test_files_that_do_not_fit_are_reported(tmp_path, break_it, message):
    write_mmeb(tmp_path, ["OK-VQA"])
    break_it(tmp_path)
    suite = suite_of(tmp_path)
    with pytest.raises(DataError, match=message):
        list(suite.tasks())
    with pytest.raises(DataError, match=message):  # before training too: it is the first row
        suite.verify_data()


def test_an_empty_candidate_is_counted_and_scored(tmp_path):
    write_mmeb(tmp_path, ["OK-VQA"])
    changed("tgt_text", ["right", "", "a", "b", "", "c"])(tmp_path)
    task = next(iter(suite_of(tmp_path).tasks()))
    assert task.warnings == ("OK-VQA: 2 candidates have neither text nor image",)
    assert "" in [content.text for content in task.pool]


def test_a_query_without_candidates_and_an_empty_image_are_reported(tmp_path):
    row, _ = mmeb_row("OK-VQA", 0)
    rows = [{**row, "tgt_text": texts, "tgt_img_path": [""] * len(texts)} for texts in (["a"], [])]
    write_parquet(tmp_path / "OK-VQA/test.parquet", rows)
    with pytest.raises(DataError, match="row 2: the query has no candidates"):
        list(suite_of(tmp_path).tasks())
    write_mmeb(tmp_path / "b", ["OK-VQA"])
    (tmp_path / "b/eval_images/OK-VQA/Test/q0.png").write_bytes(b"")
    (task,) = suite_of(tmp_path / "b").tasks()
    with pytest.raises(DataError, match=r"q0\.png is empty"):
        _ = task.queries[0]


def test_a_misspelt_data_set_is_reported():
    values = {"name": "x", "packer": "single_turn", "pooler": "last_token",
              "backbone": {"name": "qwen_vl", "random_init": {}},
              "evaluate": {"suites": [{"name": "mmeb", "data": "x", "datasets": ["OKVQA"]}]}}  # fmt: skip
    with pytest.raises(RecipeError, match=r"no data set 'OKVQA'\. Did you mean"):
        validate_settings(Evaluation, values, title="x")
