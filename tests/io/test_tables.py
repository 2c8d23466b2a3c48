"""Tables as users write them: suffixes, compression, quotes, delimiters, numbers, NaN, lists in texts."""

from __future__ import annotations

import datetime
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from muco.core import DataError
from muco.io.table_text import text_list, text_of
from muco.io.tables import kind_of, num_rows, rows, tables_below
from tests.helpers.outside_data import write_files, write_jsonl, write_parquet


def texts(path) -> list[list[str]]:
    return [[row.text(name) for name in ("q", "a")] for row in rows(path, ("q", "a"))]


def parquet_bytes(values) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(values), buffer)
    return buffer.getvalue()


ROWS = [{"q": "one", "a": "1"}, {"q": "two", "a": "2"}]
FILES = {
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "a.json": json.dumps(ROWS, indent=2).encode(),
    "a.csv": b"\xef\xbb\xbfq,a\r\none,1\r\n\r\ntwo,2\r\n",
    "semicolons.csv": b"q;a\none;1\ntwo;2\n",
    "a.tsv": b"q\ta\none\t1\ntwo\t2\n",
    "a.parquet": parquet_bytes(ROWS),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", ["plain", "capitals", "gz"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, form):
    if form == "gz" and name.endswith("parquet"):
        assert kind_of(tmp_path / f"{name}.gz") == ""
        return
    path = tmp_path / {"plain": name, "capitals": name.upper(), "gz": f"{name}.gz"}[form]
    path.write_bytes(gzip.compress(FILES[name]) if form == "gz" else FILES[name])
    assert texts(path) == [["one", "1"], ["two", "2"]]
    assert num_rows(path) == 2
    assert [row.values["q"] for row in rows(path, start=1)] == ["two"]


def test_hidden_copies_are_skipped_links_followed_and_what_is_not_read_is_named(tmp_path):
    files = {"b.JSONL": b"", "a.csv.gz": b"", ".ipynb_checkpoints/b-checkpoint.jsonl": b"", "._b.jsonl": b"",
             "info.json": b"", "x.xlsx": b"", "readme.txt": b"", "c.jsonl.zst": b""}  # fmt: skip
    write_files(tmp_path / "data", files)
    write_files(tmp_path / "elsewhere", {"d.tsv": b""})
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    tables, left_out = (
        [str(path.relative_to(tmp_path / "data")) for path in paths]
        for paths in tables_below(tmp_path / "data")
    )
    assert tables == ["a.csv.gz", "b.JSONL", "linked/d.tsv"]
    assert left_out == ["c.jsonl.zst", "info.json", "x.xlsx"]


def test_quotes_are_text_in_tsv(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b'q\ta\n"red" is what?\t1\n"two\t2\n')
    assert texts(tmp_path / "a.tsv") == [['"red" is what?', "1"], ['"two', "2"]]


def test_a_quote_in_csv_that_is_not_closed_is_named_by_its_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'q,a\n"two\nlines",1\n"three,2\nfour,3\n')
    with pytest.raises(DataError, match=r"line 4: unexpected end of data\. A field that begins"):
        list(rows(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("name", "data", "positions"),
    [
        ("a.jsonl", b'\n{"q": 1}\n\n[]\n', ["line 2", "line 4"]),
        ("a.csv", b'q,a\n"x\ny",1\n\nz,2\n', ["line 2", "line 5"]),
        ("a.tsv", b"q\ta\nx\t1\ny\t2\n", ["line 2", "line 3"]),
        ("a.parquet", FILES["a.parquet"], ["row 1", "row 2"]),
    ],
)
def test_a_row_is_named_by_the_line_of_its_file(tmp_path, name, data, positions):
    (tmp_path / name).write_bytes(data)
    assert [row.location for row in rows(tmp_path / name)] == [f"{name}: {each}" for each in positions]


def test_nan_is_no_text_and_a_number_is_one_in_every_kind_of_table(tmp_path):
    values = [{"q": 5, "a": float("nan")}, {"q": 6, "a": 0.5}]
    write_jsonl(tmp_path / "a.jsonl", values)
    write_parquet(tmp_path / "a.parquet", values)
    (tmp_path / "a.csv").write_text("q,a\n5,\n6,0.5\n")
    (tmp_path / "a.tsv").write_text("q\ta\n5\t\n6\t0.5\n")
    for kind in ("jsonl", "parquet", "csv", "tsv"):
        assert texts(tmp_path / f"a.{kind}") == [["5", ""], ["6", "0.5"]]
    assert text_of("nan", "q") == "nan", "a word, such as a name"


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("[Music] which song?", ["[Music] which song?"]),
        ("[Music]", ["[Music]"]),
        ("['a', 'b']", ["a", "b"]),
        ('["a", null, 3]', ["a", "", "3"]),
        (["a", float("nan")], ["a", ""]),
        ('["\\ud83d\\ude00"]', ["\U0001f600"]),
        ("[]", []),
        (None, []),
        (float("nan"), []),
        (7, ["7"]),
    ],
)
def test_a_text_is_a_list_only_if_it_can_be_parsed_as_one(value, right):
    assert text_list(value, "q") == right


@pytest.mark.parametrize("value", ["['a', 'b'", "['a' if]", True, {"a": 1}, float("inf"), ["\ud800"], [[1]]])
def test_what_is_no_text_and_no_list_of_texts_is_an_error(value):
    with pytest.raises(DataError, match=r"^q is "):
        text_list(value, "q")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"q": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no JSON: maximum recursion depth"),
        (b'{"q": ' + b"9" * 5000 + b"}", "no JSON: Exceeds the limit"),
        (b'{"\\ud800": 1}', "a column's name is not valid Unicode"),
        (b'"q"', "a str instead of a JSON object"),
        (b"null", "a NoneType instead of a JSON object"),
    ],
)
def test_a_line_that_cannot_be_read_is_a_fault_and_the_next_one_is_read(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(line + b'\n{"q": "good"}\n')
    broken, good = rows(tmp_path / "a.jsonl")
    assert broken.fault.startswith(message)
    assert good.text("q") == "good"


def test_dates_are_no_text_and_times_beyond_python_are_faults(tmp_path):
    day = pa.array([datetime.date(2020, 1, 1)] * 2)
    times = pa.array([0, 2**62], type=pa.timestamp("us"))
    pq.write_table(pa.table({"day": day, "time": times}), tmp_path / "a.parquet")
    good, broken = rows(tmp_path / "a.parquet")
    for name, kind in (("day", "date"), ("time", "datetime")):
        with pytest.raises(DataError, match=f"{name} is a {kind}, not text"):
            good.text(name)
    assert broken.fault.startswith("cannot be read: ")
