from __future__ import annotations

import pytest

from muco.core.errors import DataError
from muco.plugins.datasets.mbeir.files import KINDS, clean
from muco.plugins.datasets.mbeir.suite import MBEIR, TEST_SETS
from muco.testing import check_suite
from tests.helpers.eval_files import write_mbeir


def suite_of(folder, **settings) -> MBEIR:
    return MBEIR(MBEIR.Config(data=str(folder), **settings))


def test_the_benchmark_has_sixteen_test_sets_of_eight_kinds():
    members = suite_of("x").members()
    assert members["mean"] == 16
    assert {name: members[name] for name in ("S->S", "S->M", "M->S", "M->M")} == {
        "S->S": 8, "S->M": 2, "M->S": 4, "M->M": 2,
    }  # fmt: skip
    assert len([name for name in members if name.startswith("meta_")]) == 8
    both = suite_of("x", pool="both").members()
    assert both["global_mean"] == 16
    assert both["global_S->S"] == 8


def test_the_groups_agree_with_the_averages_that_the_paper_prints():
    """Overall, as printed, is the mean of the sixteen: of the groups by their sizes."""
    sizes = [sum(KINDS[task].group == group for _, task in TEST_SETS.values())
             for group in ("S->S", "S->M", "M->S", "M->M")]  # fmt: skip
    for *groups, overall in ((49.1, 68.2, 41.6, 64.8, 51.6), (54.0, 71.6, 47.4, 70.4, 56.6)):
        mean = sum(size * value for size, value in zip(sizes, groups, strict=True)) / 16
        assert mean == pytest.approx(overall, abs=0.06)


@pytest.mark.parametrize("pool", ["local", "global", "both"])
def test_the_suite_keeps_the_contract(registry, tmp_path, pool):
    write_mbeir(tmp_path)
    check_suite(registry, "mbeir", {"data": str(tmp_path), "pool": pool})


def test_queries_carry_an_instruction_and_positives_are_the_data_sets_own(tmp_path):
    write_mbeir(tmp_path)
    tasks = {task.name: task for task in suite_of(tmp_path, pool="both").tasks()}
    oven = tasks["oven_task6"]
    assert oven.queries[0].text == "Retrieve a Wikipedia paragraph. What is number 0."
    assert len(oven.queries[0].images) == 1
    assert oven.pool[1].text == "Passage 1 of oven_task6."
    assert oven.metric == "hit@5"
    assert list(oven.relevant) == [[0], [1, 2], [2], [3, 4]]
    assert tasks["fashioniq_task7"].metric == "hit@10"
    assert tasks["mscoco_task3"].queries[0].text.startswith("Find an image caption")
    wide = tasks["global_oven_task6"]
    assert len(wide.pool) == 4 * 6 + 1
    assert [wide.pool[index].text for index in wide.relevant[1]] == [oven.pool[1].text, oven.pool[2].text]
    assert wide.pool is tasks["global_edis_task2"].pool
    assert not wide.in_mean
    assert set(wide.groups) == {"global_mean", "global_M->S", "global_meta_image_text_to_text"}


def test_texts_are_cleaned_as_the_benchmark_does():
    assert clean(' "what is this" ') == "What is this."
    assert clean("'quoted'\r ") == "'quoted'."
    assert clean("Is it?") == "Is it?"
    assert clean("") == ""


def edit(path, old, new):
    def change(folder):
        file = folder / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return change


OVEN = "query/test/mbeir_oven_task6_test.jsonl"
POOL = "cand_pool/local/mbeir_oven_task6_cand_pool.jsonl"
INSTRUCTIONS = "instructions/query_instructions.tsv"
QRELS = "qrels/test/mbeir_oven_task6_test_qrels.txt"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / POOL).unlink(), "The suite searches its candidates"),
        (lambda folder: (folder / QRELS).unlink(), "qrels.txt: no such file"),
        (edit(POOL, '"5:1"', '"5:77"'), "line 2: candidate 5:1 is not in"),
        (edit(POOL, '"5:1"', '"5:0"'), "a second candidate 5:0"),
        (edit(POOL, '"5:1"', '"five"'), "'five' is no id"),
        (edit(OVEN, '"5:2"', '"5:9"'), "query 5:9 is not in the qrels"),
        (edit(QRELS, "5:3 0 5:3 1 6\n5:3 0 5:4 1 6\n", ""), "no positive of its own"),
        (edit(QRELS, "5:3 0 5:3 1 6", "5:3 5:3"), "line 8: must be"),
        (edit(OVEN, '"image,text"', '"text"'), "says 'text' and holds image,text"),
        (edit(INSTRUCTIONS, "OVEN\t5", "OVEN\t4"), "no instruction for oven"),
        (lambda folder: (folder / "mbeir_images/q1.jpg").unlink(), "1 images are missing"),
        (edit(OVEN, "{", "", ), "line 1: no JSON"),
        (edit(OVEN, '"what is number 2"', "[5]"), "line 3: query_txt is a list, not text"),
        (edit(POOL, '"\\"passage 1 of oven_task6"', '["a"]'), "line 2: txt is a list, not text"),
        (lambda folder: (folder / QRELS).write_bytes(b"\xff"), "qrels.txt: cannot be read"),
        (lambda folder: (folder / INSTRUCTIONS).write_text(""), "no instruction for oven"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_reported(tmp_path, break_it, message):
    write_mbeir(tmp_path)
    break_it(tmp_path)
    with pytest.raises(DataError, match=message):
        list(suite_of(tmp_path, datasets=["oven_task6"]).tasks())


@pytest.mark.parametrize(
    ("gone", "pool"),
    [(POOL, "local"), (QRELS, "both"), ("mbeir_images/q0.jpg", "local"),
     (INSTRUCTIONS, "local"),
     ("cand_pool/global/mbeir_union_test_cand_pool.jsonl", "both")],
)  # fmt: skip
def test_what_is_missing_is_reported_before_training(tmp_path, gone, pool):
    write_mbeir(tmp_path)
    suite_of(tmp_path, pool=pool).verify_data()
    (tmp_path / gone).unlink()
    with pytest.raises(DataError, match=gone):
        suite_of(tmp_path, pool=pool).verify_data()
    with pytest.raises(DataError, match="TIGER-Lab/M-BEIR --local-dir"):
        suite_of(tmp_path / "none").verify_data()


def test_an_instruction_drawn_for_each_query_is_the_same_for_equal_seeds(tmp_path):
    write_mbeir(tmp_path)

    def queries_with(**settings):
        (task,) = suite_of(tmp_path, datasets=["oven_task6"], **settings).tasks()
        return [query.text for query in task.queries]

    fixed = [queries_with(prompt=prompt) for prompt in range(1, 5)]
    drawn = [queries_with(prompt="draw", prompt_seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert all(
        text in each for texts in drawn for text, each in zip(texts, zip(*fixed, strict=True), strict=True)
    )
    assert len({tuple(texts) for texts in drawn}) > 1
    assert len({fixed_texts[0] for fixed_texts in fixed}) == 4


def test_an_empty_candidate_is_counted_and_the_set_goes_on(tmp_path):
    write_mbeir(tmp_path)
    edit(POOL, '"\\"passage 5 of oven_task6"', "null")(tmp_path)
    (task,) = suite_of(tmp_path, datasets=["oven_task6"]).tasks()
    assert (len(task.pool), task.pool[5].text) == (6, "")
    assert task.warnings == ("oven_task6: 1 candidates have neither text nor image",)
