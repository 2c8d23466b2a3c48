"""`muco data generate` killed again and again: nothing is lost, and no answer is paid for twice."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from tests.helpers.chat_server import ChatServer
from tests.helpers.processes import Forked, ended, start
from tests.helpers.small import picture

pytest.importorskip("openai")

CONCURRENCY, NUM_IMAGES, NUM_KILLS = 4, 20, 10
FAULTS = ("good", "malformed", "wrong_number", "refusal", "server_error", "dropped", "bad_pairs")


def write_table(folder: Path) -> None:
    """Write pictures, and a table of them: every second has a caption, which may hold a fault."""
    lines = ["image,caption\n"]
    for index in range(NUM_IMAGES):
        (folder / f"{index}.png").write_bytes(picture("red", (56 + index, 56)).data)
        caption = f"number {index} FAULT={FAULTS[index // 2 % len(FAULTS)]}" if index % 2 else ""
        lines.append(f"{index}.png,{caption}\n")
    (folder / "images.csv").write_text("".join(lines))


def generate(folder: Path, server: ChatServer, table: str) -> Forked:
    settings = (
        f"server.base_url={server.base_url}", "server.model=m", "server.max_retries=3",
        f"server.concurrency={CONCURRENCY}", "filters.round_trip=true",
    )  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    process = start(folder, "data", "generate", "m3t", "--from", "images.csv", "--to", table, *words)
    assert isinstance(process, Forked)
    return process


def num_asked(server: ChatServer) -> int:
    """Return the number of requests, without the first tries that the script lets fail."""
    failing = ("server_error", "dropped")
    return sum(times - any(fault in text for fault in failing) for text, times in list(server.asked.items()))


def num_kept(journal: Path) -> int:
    if not journal.exists():
        return 0
    with closing(sqlite3.connect(journal)) as db:
        tables = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'answers'").fetchone()[0]
        return db.execute("SELECT count(*) FROM answers").fetchone()[0] if tables else 0


@pytest.mark.process
def test_kills_at_ten_random_moments_leave_the_same_table(tmp_path):
    write_table(tmp_path)
    random = Random(0)
    with ChatServer.running() as server:
        ended(generate(tmp_path, server, "whole.jsonl"))
    journal = tmp_path / "killed.jsonl.journal.sqlite"
    with ChatServer.running(delay_seconds=0.01) as server:
        for _ in range(NUM_KILLS):
            asked, kept = num_asked(server), num_kept(journal)
            process = generate(tmp_path, server, "killed.jsonl")
            more = random.randint(0, 8)
            while process.poll() is None and num_asked(server) < asked + more:
                time.sleep(0.002)
            time.sleep(random.random() * 0.05)
            process.kill()
            process.communicate()
            # A request that is asked again adds no answer; the open ones are lost with the process.
            assert num_asked(server) - asked - (num_kept(journal) - kept) <= CONCURRENCY
        before = num_asked(server)
        ended(generate(tmp_path, server, "killed.jsonl"))
        assert num_asked(server) > before, "all kills came after the last request"
    for name in ("", ".skipped.jsonl"):
        whole, killed = (tmp_path / f"{table}.jsonl{name}" for table in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()
        assert whole.read_bytes()
