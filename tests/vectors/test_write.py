"""Stores of vectors: what is written, resumed, added and refused."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muco.core import MucoError
from muco.core.errors import DataError
from muco.vectors import write
from muco.vectors.inputs import Columns, Inputs, read_inputs
from muco.vectors.search import search
from muco.vectors.store import StoreMetadata, VectorStore
from muco.vectors.write import write_store
from tests.helpers.small import picture

METADATA = StoreMetadata("a hash", "runs/x", "", 4, "float32", "/pictures")


def encode(contents: Any) -> tuple[Any, dict[int, DataError]]:
    """Return unit vectors that follow from the contents; a text `broken` cannot be encoded."""
    seeds = [np.random.default_rng(content.content_id % 2**32) for content in contents]
    vectors = np.stack([seed.normal(size=4) for seed in seeds]).astype(np.float32)
    faults = {row: DataError("too long") for row, each in enumerate(contents) if "broken" in each.text}
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), faults


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(write, "PART_ROWS", 3)


def table(folder: Path, texts: list[str]) -> Inputs:
    path = folder / "t.csv"
    path.write_text("id,text\n" + "".join(f"{text},{text}\n" for text in texts))
    return read_inputs(path, Columns(id="id"))


def pictures(folder: Path, number: int) -> Path:
    for index in range(number):
        path = folder / f"{index % 2}" / f"{index}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture("red", (8 + index, 8)).data)
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["s.parquet", "s.npy"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_store_has_the_items_in_order_with_their_vectors(name, dtype, tmp_path):
    inputs = table(tmp_path, list("abcdefgh"))
    written = write_store(tmp_path / name, inputs, replace(METADATA, dtype=dtype), encode)
    store = VectorStore.open(tmp_path / name)
    assert (written.num_new, written.num_rows, written.skipped) == (8, 8, {})
    assert [row.id for row in store.rows] == [row.text for row in store.rows] == list("abcdefgh")
    expected, _ = encode([inputs.content(row) for row in inputs.rows])
    assert store.vectors.dtype == dtype
    np.testing.assert_array_equal(store.vectors, expected.astype(dtype))


def test_images_of_a_folder_are_found_in_its_folders_and_hidden_ones_are_not(tmp_path):
    folder = pictures(tmp_path / "pictures", 4)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "1.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("no image")
    inputs = read_inputs(folder, Columns())
    assert [row.image for row in inputs.rows] == ["0/0.PNG", "0/2.PNG", "1/1.PNG", "1/3.PNG"]


@pytest.mark.parametrize("stop_after", range(1, 4))
def test_a_call_that_was_killed_goes_on_with_the_same_bytes(stop_after, tmp_path):
    inputs = table(tmp_path, list("abcdefgh"))
    whole, stopped = tmp_path / "whole.parquet", tmp_path / "stopped.parquet"
    write_store(whole, inputs, METADATA, encode)
    calls = []

    def dies(contents: Any) -> Any:
        calls.append(len(contents))
        if len(calls) > stop_after:
            raise KeyboardInterrupt
        return encode(contents)

    if stop_after < 3:
        with pytest.raises(KeyboardInterrupt):
            write_store(stopped, inputs, METADATA, dies)
    else:
        write_store(stopped, inputs, METADATA, dies)
    assert not stopped.exists() or stop_after == 3
    calls.clear()
    stop_after = 99
    write_store(stopped, inputs, METADATA, dies)
    assert digest(stopped) == digest(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.parquet", "t.csv", "whole.parquet"]


def test_parts_of_another_model_are_not_used(tmp_path):
    inputs = table(tmp_path, list("abcdefgh"))

    def dies(contents: Any) -> Any:
        if contents[0].text == "d":
            raise KeyboardInterrupt
        return np.zeros((len(contents), 4), dtype=np.float32), {}

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "s.parquet", inputs, METADATA, dies)
    write_store(tmp_path / "s.parquet", inputs, replace(METADATA, fingerprint="another"), encode)
    assert np.abs(VectorStore.open(tmp_path / "s.parquet").vectors).min() > 0


def test_a_store_that_is_whole_is_not_made_again(tmp_path):
    inputs = table(tmp_path, ["a", "b"])
    write_store(tmp_path / "s.parquet", inputs, METADATA, encode)
    before = digest(tmp_path / "s.parquet")
    assert write_store(tmp_path / "s.parquet", inputs, METADATA, lambda _: 1 / 0).num_new == 0  # type: ignore[arg-type,return-value]
    assert digest(tmp_path / "s.parquet") == before


def test_append_encodes_only_what_is_new(tmp_path):
    path = tmp_path / "s.parquet"
    write_store(path, table(tmp_path, ["a", "b"]), METADATA, encode)
    old = VectorStore.open(path)
    seen: list[str] = []

    def counted(contents: Any) -> Any:
        seen.extend(content.text for content in contents)
        return encode(contents)

    written = write_store(path, table(tmp_path, ["c", "b", "a", "d"]), METADATA, counted, append=True)
    store = VectorStore.open(path)
    assert (written.num_new, written.num_rows, seen) == (2, 4, ["c", "d"])
    assert [row.id for row in store.rows] == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(store.vectors[:2], old.vectors)
    assert write_store(path, table(tmp_path, ["a"]), METADATA, encode, append=True).num_new == 0


def test_what_cannot_be_encoded_is_left_out_and_named(tmp_path):
    folder = pictures(tmp_path / "pictures", 4)
    (folder / "0" / "0.PNG").write_bytes(b"no image")
    inputs = read_inputs(folder, Columns())
    written = write_store(tmp_path / "s.parquet", inputs, METADATA, encode)
    assert list(written.skipped) == ["0/0.PNG"]
    assert "no PNG" in written.skipped["0/0.PNG"]
    assert [row.id for row in VectorStore.open(tmp_path / "s.parquet").rows] == [
        "0/2.PNG",
        "1/1.PNG",
        "1/3.PNG",
    ]
    texts = write_store(tmp_path / "t.parquet", table(tmp_path, ["a", "broken", "b"]), METADATA, encode)
    assert texts.skipped == {"broken": "too long"}


def test_nothing_that_can_be_encoded_is_an_error(tmp_path):
    with pytest.raises(DataError, match="none of the 1 items can be encoded"):
        write_store(tmp_path / "s.parquet", table(tmp_path, ["broken"]), METADATA, encode)


def refuse(tmp_path: Path, message: str, metadata: StoreMetadata = METADATA, **options: Any) -> None:
    path = options.pop("path", tmp_path / "s.parquet")
    with pytest.raises(MucoError, match=message):
        write_store(path, table(tmp_path, ["a", "c"]), metadata, encode, **options)


def test_another_model_or_other_items_are_refused(tmp_path):
    write_store(tmp_path / "s.parquet", table(tmp_path, ["a", "b"]), METADATA, encode)
    refuse(tmp_path, "vectors of another model", replace(METADATA, fingerprint="other"), append=True)
    refuse(tmp_path, "there already, with other items. --append adds")
    refuse(
        tmp_path, "made with dtype 'float32', not 'float16'", replace(METADATA, dtype="float16"), append=True
    )
    refuse(tmp_path, "ends in .parquet or .npy", path=tmp_path / "s.csv")
    refuse(tmp_path, "--append needs a store that ends in .parquet", path=tmp_path / "s.npy", append=True)


@pytest.mark.parametrize("name", ["s.parquet", "s.npy"])
def test_a_store_that_is_half_written_or_no_store_is_an_error(name, tmp_path):
    path = tmp_path / name
    write_store(path, table(tmp_path, list("abcd")), METADATA, encode)
    data = path.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 9):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"damaged"):
            VectorStore.open(path)
    with pytest.raises(DataError, match="no such file"):
        VectorStore.open(tmp_path / f"none{path.suffix}")


def test_a_parquet_file_of_another_tool_is_no_store(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"id": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="not written by `muco encode`"):
        VectorStore.open(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("text\n", Columns(), "no row to read"),
        ("text\na\n", Columns(text="txt"), "no row has a column 'txt'. Did you mean 'text'"),
        ("id,text\na,b\n", Columns(id="idd"), "no row has a column 'idd'"),
        ("caption\na\n", Columns(), "no row to read"),
    ],
)
def test_tables_without_items_are_refused(text, columns, message, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_inputs(tmp_path / "t.csv", columns)


def test_rows_of_a_table_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\nno json\n{"id": "b"}\n'
    )
    inputs = read_inputs(tmp_path / "t.jsonl", Columns(id="id"))
    assert [row.id for row in inputs.rows] == ["a"]
    assert [location.rpartition(": ")[2] for location in inputs.faults] == ["line 2", "line 3", "line 4"]


def test_a_search_returns_the_nearest_with_absolute_paths(tmp_path):
    folder = pictures(tmp_path / "pictures", 4)
    inputs = read_inputs(folder, Columns())
    write_store(tmp_path / "s.parquet", inputs, replace(METADATA, root=str(inputs.root)), encode)
    store = VectorStore.open(tmp_path / "s.parquet")
    hits = search(store, np.array(store.vectors[2:3]), 3)
    scores = store.vectors @ store.vectors[2]
    assert [hit.id for hit in hits] == [store.rows[row].id for row in np.argsort(-scores)[:3]]
    assert hits[0].score == pytest.approx(1)
    assert Path(hits[0].image or "").is_file()
    with pytest.raises(ValueError, match="at least one"):
        search(store, np.asarray(store.vectors[:1]), 0)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_file_of_the_user_beside_a_npy_store_is_not_replaced(suffix, tmp_path):
    inputs, beside = table(tmp_path, ["a", "b"]), tmp_path / f"s{suffix}"
    beside.write_text("precious")
    with pytest.raises(MucoError, match=f"s{suffix} is there already, and .*s.npy would replace it"):
        write_store(tmp_path / "s.npy", inputs, METADATA, encode)
    assert beside.read_text() == "precious"


def test_a_npy_store_that_was_killed_before_its_last_file_goes_on(tmp_path, monkeypatch):
    inputs = table(tmp_path, ["a", "b"])

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path / "s.npy", inputs, METADATA, encode)
    assert (tmp_path / "s.jsonl").exists()
    assert write_store(tmp_path / "s.npy", inputs, METADATA, encode).num_rows == 2


def test_items_that_changed_under_their_id_are_named_and_not_encoded_again(tmp_path):
    def numbered(*texts: str) -> Inputs:
        path = tmp_path / "n.csv"
        path.write_text("\n".join(["text", *texts, ""]))
        return read_inputs(path, Columns())

    path = tmp_path / "s.parquet"
    write_store(path, numbered("a", "b"), METADATA, encode)
    for texts, num_new in ((("a", "c"), 0), (("a", "c", "d"), 1)):
        written = write_store(path, numbered(*texts), METADATA, encode, append=True)
        assert (written.num_new, written.skipped) == (
            num_new, {"2": "the store has this id with another text or image"},
        )  # fmt: skip
    assert [row.text for row in VectorStore.open(path).rows] == ["a", "b", "d"]


def test_other_settings_are_named_before_append_is_advised(tmp_path):
    write_store(tmp_path / "s.parquet", table(tmp_path, ["a", "c"]), METADATA, encode)
    refuse(tmp_path, "made with instruction '', not 'Find: '", replace(METADATA, instruction="Find: "))


def test_images_that_no_row_names_do_not_change_a_table_of_texts(tmp_path):
    before = table(tmp_path, ["a"]).digest()
    pictures(tmp_path, 2)
    assert table(tmp_path, ["a"]).digest() == before
    folder = read_inputs(tmp_path, Columns()).digest()
    pictures(tmp_path, 3)
    assert read_inputs(tmp_path, Columns()).digest() != folder


def test_file_names_that_are_not_unicode_are_named_and_left_out(tmp_path):
    folder = pictures(tmp_path / "pictures", 2)
    try:
        (folder / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("the file system takes no such name")
    inputs = read_inputs(folder, Columns())
    assert [row.id for row in inputs.rows] == ["0/0.PNG", "1/1.PNG"]
    assert inputs.faults == {r"'\udcff.png'": "the file name is not valid Unicode"}


def test_a_path_or_an_instruction_that_is_not_unicode_is_refused(tmp_path):
    with pytest.raises(DataError, match="the instruction is not valid Unicode"):
        read_inputs(pictures(tmp_path, 1), Columns(), instruction="\udcff")


def test_the_first_reason_is_named_if_no_row_can_be_read(tmp_path):
    (tmp_path / "t.csv").write_text("caption\na\n")
    with pytest.raises(DataError, match=r"no row to read\. t\.csv: line 2: neither text in column 'text'"):
        read_inputs(tmp_path / "t.csv", Columns())


def test_more_items_than_a_store_has_are_all_items(tmp_path):
    write_store(tmp_path / "s.parquet", table(tmp_path, ["a", "b"]), METADATA, encode)
    store = VectorStore.open(tmp_path / "s.parquet")
    assert len(search(store, np.asarray(store.vectors[:1]), 10**15)) == 2


def test_a_vector_that_is_not_finite_is_a_damaged_store(tmp_path):
    path = tmp_path / "s.npy"
    write_store(path, table(tmp_path, ["a", "b"]), METADATA, encode)
    vectors = np.load(path)
    vectors[1, 0] = np.nan
    np.save(path, vectors)
    with pytest.raises(DataError, match="a vector is not finite"):
        search(VectorStore.open(path), np.eye(1, 4, dtype=np.float32), 1)
    np.save(path, vectors.astype(np.float64))
    with pytest.raises(DataError, match=r"vectors float64 \[2, 4\] do not belong to 2 rows of 4 float32"):
        VectorStore.open(path)


def test_a_folder_is_no_store(tmp_path):
    (tmp_path / "s.parquet").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        VectorStore.open(tmp_path / "s.parquet")
