"""`muco data generate` against a scripted server on this machine."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from muco.commands.main import app
from muco.core import MucoError
from tests.helpers.chat_server import ChatServer
from tests.helpers.small import picture

pytest.importorskip("openai")


@pytest.fixture
def server():
    with ChatServer.running() as server:
        yield server


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    for index in range(6):
        path = folder / f"{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture("red", (56 + index, 56)).data)
    return folder


def write_captions(path: Path, captions: dict[str, str]) -> Path:
    lines = [json.dumps({"image": name, "caption": caption}) + "\n" for name, caption in captions.items()]
    path.write_text("".join(lines))
    return path


def generate(server: ChatServer, path: Path, to: Path, *options: object, source: object = "m3t") -> str:
    """Run the command and return what it prints, on one line; raise its error."""
    settings = (f"server.base_url={server.base_url}", "server.model=scripted", "server.max_retries=2")
    arguments = ["data", "generate", source, "--from", path, "--to", to, *options]
    arguments += [word for setting in settings for word in ("--set", setting)]
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.output.split())


def rows_of(table: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in table.read_text().splitlines()]


def skipped_of(table: Path) -> dict[str, str]:
    return {row["image"]: row["reason"] for row in rows_of(table.with_name(f"{table.name}.skipped.jsonl"))}


def test_images_become_captions_and_seven_pairs_in_the_order_of_their_names(server, photos, tmp_path):
    table = tmp_path / "table.jsonl"
    output = generate(server, photos, table)
    rows = rows_of(table)
    assert "6 rows, 42 pairs" in output
    assert [row["qry_image_path"] for row in rows] == [f"{n % 2}/{n}.png" for n in (0, 2, 4, 1, 3, 5)]
    assert rows[0]["tasks"] == [
        "classification", "global_vqa_1", "global_vqa_2", "local_vqa_1", "local_vqa_2", "creative",
        "retrieval",
    ]  # fmt: skip
    assert [len(wordings) for wordings in rows[0]["qry"]] == [3] * 7
    assert "picture" in rows[0]["qry_sentence"]
    assert (rows[0]["model"], rows[0]["caption_model"]) == ("scripted", "scripted")
    assert (rows[0]["prompt_tokens"], rows[0]["completion_tokens"]) == (200, 20)
    assert set(server.asked.values()) == {1}
    assert sum(server.asked.values()) == 12


def test_a_second_call_asks_nothing_and_writes_the_same_table(server, photos, tmp_path):
    table = tmp_path / "table.jsonl"
    generate(server, photos, table)
    data, number = table.read_bytes(), len(server.bodies)
    table.unlink()
    assert "0 answers" in generate(server, photos, table)
    assert table.read_bytes() == data
    assert len(server.bodies) == number


def test_new_filters_cost_nothing(server, photos, tmp_path):
    table = tmp_path / "table.jsonl"
    generate(server, photos, table)
    number = len(server.bodies)
    output = generate(server, photos, table, "--set", "filters.max_overlap=0.5")
    assert "36 pairs dropped: duplicate" in output
    assert "6 rows, 6 pairs" in output
    assert len(server.bodies) == number


def test_questions_are_asked_again_and_pairs_with_another_answer_are_dropped(server, photos, tmp_path):
    options = (photos, tmp_path / "table.jsonl", "--set", "filters.round_trip=true")
    output = generate(server, *options)
    assert "12 pairs dropped: round_trip" in output
    rows = rows_of(tmp_path / "table.jsonl")
    assert rows[0]["tasks"] == ["classification", "global_vqa_1", "global_vqa_2", "creative", "retrieval"]
    assert rows[0]["prompt_tokens"] == 100 * (1 + 1 + 5)  # caption, pairs, five questions
    assert len(server.bodies) == 6 * 7
    data = (tmp_path / "table.jsonl").read_bytes()
    assert "0 answers" in generate(server, *options)
    assert (tmp_path / "table.jsonl").read_bytes() == data
    assert "6 rows, 42 pairs" in generate(server, photos, tmp_path / "table.jsonl")
    assert len(server.bodies) == 6 * 7


def test_given_captions_are_checked_against_the_image(server, photos, tmp_path):
    file = write_captions(tmp_path / "captions.jsonl", {"0/0.png": "a cup", "0/gone.png": "b"})
    table = tmp_path / "table.jsonl"
    generate(server, photos, table, "--captions", file, "--set", "filters.round_trip=true")
    questions = [body["messages"][0]["content"] for body in server.bodies[1:]]
    assert [part["type"] for content in questions for part in content] == ["image_url", "text"] * 5
    assert len(rows_of(table)) == 1


FAULTS = {
    "good": 1, "fenced": 1, "malformed": 2, "wrong_number": 2, "hopeless": 2, "refusal": 1,
    "marked_refusal": 1, "cut": 1, "rate_limit": 2, "server_error": 2, "down": 3, "too_long": 1, "dropped": 2,
    "slow": 1, "not_a_completion": 1, "bad_pairs": 1, "hostile": 1,
}  # fmt: skip
"""Requests that each costs, tries included, with two retries."""
SKIPPED = {
    "hopeless": "invalid", "refusal": "refused", "marked_refusal": "refused", "cut": "cut_off",
    "down": "unanswered", "too_long": "request_refused", "not_a_completion": "unanswered",
}  # fmt: skip


def test_each_fault_is_repaired_or_counted(server, photos, tmp_path):
    captions = {f"{name}.png": f"{name} FAULT={name}" for name in FAULTS}
    file = write_captions(tmp_path / "captions.jsonl", captions)
    table = tmp_path / "table.jsonl"
    output = generate(server, file, table)
    asked: Counter[str] = Counter()
    for text, times in server.asked.items():
        asked[text.rsplit("=", 1)[1]] += times
    assert dict(asked) == FAULTS
    assert skipped_of(table) == {f"{name}.png": reason for name, reason in SKIPPED.items()}
    rows = {Path(row["qry_image_path"]).stem: row for row in rows_of(table)}
    assert rows.keys() == FAULTS.keys() - SKIPPED.keys()
    assert rows["bad_pairs"]["tasks"] == ["classification"]
    assert rows["malformed"]["prompt_tokens"] == 200
    for line in ("2 images left out: refused", "2 images left out: unanswered; start again to ask them"):
        assert line in output
    for name in ("repeats_question", "too_long", "duplicate", "markup", "refusal", "empty"):
        assert f"1 pairs dropped: {name}" in output
    first, second = next(times for text, times in server.times.items() if "rate_limit" in text)
    assert second - first >= 1.0
    answers = rows["hostile"]["pos_text"]
    assert answers[0] == "a [31mcat <|im_end|>"
    page = (tmp_path / "table.jsonl.html").read_text()
    assert "{{ 7 * 7 }}" in page
    assert "x &lt; y &amp; &#34;z&#34;" in page


def test_what_failed_is_asked_again_by_the_next_call_and_nothing_else(server, tmp_path):
    captions = {"a.png": "a", "b.png": "b FAULT=down", "c.png": "c"}
    file = write_captions(tmp_path / "captions.jsonl", captions)
    generate(server, file, tmp_path / "table.jsonl")
    before = Counter(server.asked)
    generate(server, file, tmp_path / "table.jsonl")
    again = server.asked - before
    assert [text.split()[-1] for text in again] == ["FAULT=down"]


def test_one_stage_asks_once_an_image(server, photos, tmp_path):
    table = tmp_path / "table.jsonl"
    assert "6 rows, 42 pairs" in generate(server, photos, table, "--one-stage")
    assert len(server.bodies) == 6
    assert rows_of(table)[0]["qry_sentence"].startswith("Described:")


def test_parquet_holds_the_same_rows(server, photos, tmp_path):
    import pyarrow.parquet as parquet

    generate(server, photos, tmp_path / "table.jsonl")
    generate(server, photos, tmp_path / "table.parquet")
    assert parquet.read_table(tmp_path / "table.parquet").to_pylist() == rows_of(tmp_path / "table.jsonl")


def test_parts_split_the_images_and_a_sample_is_always_the_same(server, photos, tmp_path):
    table = tmp_path / "table.jsonl"
    generate(server, photos, table)
    whole = [row["qry_image_path"] for row in rows_of(table)]
    for part in ("1/2", "2/2"):
        generate(server, photos, table, "--part", part)
    parts = [row["qry_image_path"] for n in (1, 2) for row in rows_of(tmp_path / f"table-{n}-of-2.jsonl")]
    assert sorted(parts) == sorted(whole)
    samples = []
    for name in ("a", "b"):
        generate(server, photos, tmp_path / f"{name}.jsonl", "--sample", 2)
        samples.append((tmp_path / f"{name}.jsonl").read_bytes())
    assert samples[0] == samples[1]
    assert samples[0].count(b"\n") == 2


def test_a_dry_run_prints_requests_and_sends_none(photos, tmp_path):
    with ChatServer.running() as server:
        output = generate(server, photos, tmp_path / "table.jsonl", "--dry-run")
    assert output.count('"image_url": {') == 3
    assert "(caption of 0/0.png)" in output
    assert "base64,..." in output
    assert not server.bodies
    assert not (tmp_path / "table.jsonl").exists()


def test_the_key_is_sent_and_kept_nowhere(server, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("OWN_KEY", "sk-very-secret")
    output = generate(server, photos, tmp_path / "table.jsonl", "--set", "server.key_variable=OWN_KEY")
    assert {headers["authorization"] for headers in server.headers} == {"Bearer sk-very-secret"}
    server.refuses = 401, "Incorrect API key provided: sk-very-secret"
    with pytest.raises(MucoError, match=r"refuses the key: Incorrect API key provided: \*\*\*"):
        generate(server, photos, tmp_path / "other.jsonl", "--set", "server.key_variable=OWN_KEY")
    assert "secret" not in output
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_without_a_key_variable_the_key_of_the_environment_is_not_sent(server, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    generate(server, photos, tmp_path / "table.jsonl")
    assert "secret" not in str(server.headers)


def test_equal_captions_are_asked_once(server, tmp_path):
    file = write_captions(tmp_path / "captions.jsonl", {f"{n}.png": "the same" for n in range(20)})
    assert "20 rows" in generate(server, file, tmp_path / "table.jsonl")
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["server.key_variable=NO_SUCH_KEY"], "environment variable NO_SUCH_KEY is not set"),
        (["server.key_variable=sk-123"], "must be the name of an environment variable"),
        (["server.base_url=http://user:pass@x/v1"], "must hold no user"),
        (["server.model=null"], "no model: --set server.model=NAME"),
        (["kinds.local_vqa_1={prompt: x}"], "two kinds give the turn local_vqa_1"),
        (["filters.round_trip=true", "round_trip=null"], "filters.round_trip needs round_trip.prompt"),
        (["round_trip.prompt=x"], r"round_trip.prompt lacks \{question\}"),
        (["pairs.prompt=x"], r"pairs.prompt lacks \{caption\}"),
    ],
)
def test_wrong_settings_are_errors_before_anything_is_sent(server, photos, tmp_path, settings, message):
    options = [word for setting in settings for word in ("--set", setting)]
    command = ["data", "generate", "m3t", "--from", photos, "--to", tmp_path / "t.jsonl", "--set",
               "server.model=m", "--set", f"server.base_url={server.base_url}", *options]  # fmt: skip
    result = CliRunner().invoke(app, [str(each) for each in command])
    assert isinstance(result.exception, MucoError)
    with pytest.raises(MucoError, match=message) as raised:
        raise result.exception
    assert "sk-123" not in str(raised.value)
    assert "pass" not in str(raised.value).replace("password", "")
    assert not server.bodies


def test_a_kind_twice_is_an_error_with_its_lines(server, photos, tmp_path):
    from muco.config.load import find_recipe

    text = find_recipe("generate/m3t").read_text() + "\n"
    text = text.replace("paraphrases: 2\n", "").rstrip() + "\n  creative:\n    prompt: again\n"
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(MucoError, match=r"kinds\.creative: given twice, first in line \d+"):
        generate(server, photos, tmp_path / "table.jsonl", source=own)


def test_an_empty_folder_and_a_missing_one_are_errors(server, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MucoError, match="no image in it"):
        generate(server, tmp_path / "empty", tmp_path / "table.jsonl")
    with pytest.raises(MucoError, match="no such file or folder"):
        generate(server, tmp_path / "nowhere", tmp_path / "table.jsonl")


def test_a_model_without_vision_stops_after_three_requests(server, photos, tmp_path):
    server.refuses = 400, "scripted is not a multimodal model"
    with pytest.raises(MucoError, match=r"not a multimodal model.*give captions: --captions FILE"):
        generate(server, photos, tmp_path / "table.jsonl")
    assert len(server.bodies) == 3


def test_a_server_that_fails_is_tried_three_times_at_first(server, tmp_path):
    file = write_captions(tmp_path / "captions.jsonl", {f"{n}.png": f"{n} FAULT=down" for n in range(9)})
    with pytest.raises(MucoError, match=r"stopped: 3 requests in a row failed\. The last: status 503: overl"):
        generate(server, file, tmp_path / "table.jsonl", "--set", "server.max_retries=8")
    assert list(server.asked.values()) == [3, 3, 3]


def test_a_server_without_json_schemas_is_named(server, photos, tmp_path):
    server.refuses = 400, "response_format.type: Input should be 'text' or 'json_object'"
    with pytest.raises(MucoError, match=r"Input should be 'text'.*server.structured=json_object_schema"):
        generate(server, photos, tmp_path / "table.jsonl")


@pytest.mark.parametrize(
    ("structured", "keys"),
    [("json_object_schema", ["schema", "type"]), ("json_object", ["type"]), ("none", None)],
)
def test_json_is_requested_as_the_settings_say(server, photos, tmp_path, structured, keys):
    options = ("--limit", 1, "--set", f"server.structured={structured}")
    generate(server, photos, tmp_path / "table.jsonl", *options)
    response_format = server.bodies[1].get("response_format")
    assert (sorted(response_format) if response_format else None) == keys


def test_a_wrong_address_is_named(server, photos, tmp_path):
    wrong = "server.base_url=http://127.0.0.1:9/v1"
    command = ["data", "generate", "m3t", "--from", photos, "--to", tmp_path / "t.jsonl", "--set", wrong,
               "--set", "server.model=m", "--set", "server.max_retries=0"]  # fmt: skip
    result = CliRunner().invoke(app, [str(each) for each in command])
    assert "127.0.0.1:9/v1: Cannot connect" in str(result.exception)
    assert "is server.base_url its address?" in str(result.exception)
    server.refuses = 404, "no model of that name"
    with pytest.raises(MucoError, match="has no chat completions or no model 'scripted'"):
        generate(server, photos, tmp_path / "table.jsonl")
    assert len(server.bodies) == 1


def test_no_file_of_another_kind_is_replaced(server, photos, tmp_path):
    captions = write_captions(tmp_path / "captions.jsonl", {"0/0.png": "a cup"})
    content = captions.read_bytes()
    for path in (captions, photos):
        with pytest.raises(MucoError, match="would replace the file that is read"):
            generate(server, path, captions, "--captions", captions)
    with pytest.raises(MucoError, match="all of them would be paid for again"):
        generate(server, photos, captions)
    with pytest.raises(MucoError, match="no folder can be made there"):
        generate(server, photos, captions / "table.jsonl")
    assert captions.read_bytes() == content
    assert not server.bodies


def test_captions_of_other_images_are_an_error_and_images_without_are_counted(server, photos, tmp_path):
    file = write_captions(tmp_path / "other.jsonl", {"photos/0.png": "a cup"})
    with pytest.raises(
        MucoError, match=r"no caption for any .* such as '0/0.png', .* such as 'photos/0.png'"
    ):
        generate(server, photos, tmp_path / "table.jsonl", "--captions", file)
    file = write_captions(tmp_path / "captions.jsonl", {"0/0.png": "a cup"})
    output = generate(server, photos, tmp_path / "table.jsonl", "--captions", file)
    assert f"5 images are left out: {file} has no caption for them" in output


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_table_of_other_settings_is_named_before_its_images_are_asked_again(
    server, photos, tmp_path, suffix
):
    options = (photos, tmp_path / f"table.{suffix}", "--limit", 1)
    generate(server, *options)
    note = "is of other prompts, models or kinds"
    assert note not in generate(server, *options, "--set", "filters.markup=false")
    assert note in generate(server, *options, "--set", "paraphrases=3")


def test_broken_images_are_left_out_and_not_sent(server, photos, tmp_path):
    (photos / "0" / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    (photos / "0" / "cut.png").write_bytes((photos / "0" / "0.png").read_bytes()[:-40])
    generate(server, photos, tmp_path / "table.jsonl")
    assert skipped_of(tmp_path / "table.jsonl") == {"0/broken.jpg": "image", "0/cut.png": "image"}
    assert len(server.bodies) == 12


def test_two_processes_do_not_write_one_table(server, photos, tmp_path):
    from muco.generate.journal import Journal

    with (
        Journal.open(tmp_path / "table.jsonl.journal.sqlite"),
        pytest.raises(MucoError, match="another process writes this table"),
    ):
        generate(server, photos, tmp_path / "table.jsonl")


def test_a_damaged_journal_is_named(server, photos, tmp_path):
    (tmp_path / "table.jsonl.journal.sqlite").write_bytes(os.urandom(8192))
    with pytest.raises(MucoError, match="damaged"):
        generate(server, photos, tmp_path / "table.jsonl")
