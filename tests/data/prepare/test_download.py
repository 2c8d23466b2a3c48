"""Downloading from a server of this machine that is slow, breaks off, lies and answers errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from muco.core import DataError
from muco.core.ids import url_name
from muco.core.image import EncodedImage
from muco.data.prepare.download import (
    FAILURES_FILE,
    DownloadLimits,
    download,
    is_public,
    retry_after_seconds,
)
from muco.io.image_files import ImageFiles
from tests.helpers.outside_data import image_bytes, transparent_png, write_jsonl
from tests.helpers.server import Server

QUICK = {"first_wait_seconds": 0.01, "tries": 3, "timeout_seconds": 1.0}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server.running() as server:
        yield server


def fetch(urls: list[str], folder: Path, *, allow: tuple[str, ...] = ("127.0.0.1",), **options):
    return download(urls, folder, DownloadLimits(**(QUICK | options), allowed_hosts=frozenset(allow)))


def had(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {entry.name: tar.extractfile(entry).read() for entry in tar}
    return found


def failures(folder: Path) -> dict[str, str]:
    lines = (folder / FAILURES_FILE).read_text().splitlines()
    return {json.loads(line)["url"]: json.loads(line)["reason"] for line in lines}


def test_images_lie_under_the_hash_of_their_url_each_once(server, tmp_path):
    urls = [server.url(f"image/{number}") for number in range(20)]
    done = fetch(urls + urls, tmp_path)
    assert (done.num_new, done.num_failed) == (20, 0)
    assert had(tmp_path) == {url_name(url): image_bytes(number) for number, url in enumerate(urls)}
    assert set(server.requests.values()) == {1}


def test_large_images_are_reduced_unless_that_would_lose_how_they_are_shown(server, tmp_path):
    urls = [server.url("image/1"), server.url("transparent")]
    fetch(urls, tmp_path, max_shorter_side_pixels=20)
    stored = had(tmp_path)
    assert EncodedImage(stored[url_name(urls[0])]).size == (20, 20)
    assert stored[url_name(urls[1])] == transparent_png()


def test_what_is_there_is_not_fetched_again_and_what_failed_is(server, tmp_path):
    urls = [server.url("image/1"), server.url("status/404")]
    fetch(urls, tmp_path)
    done = fetch([*urls, server.url("image/2")], tmp_path)
    assert (done.num_new, done.num_had, done.num_failed) == (1, 1, 1)
    assert server.requests == {"/image/1": 1, "/image/2": 1, "/status/404": 2}
    assert len(had(tmp_path)) == 2


@pytest.mark.parametrize(
    ("path", "message", "times"),
    [
        ("status/404", "status 404", 1),
        ("status/500", "status 500", 3),
        ("hangs", "no answer within 0.3 s", 3),
        ("breaks", "ClientPayloadError", 3),
        ("short", "", None),
        ("endless", "more than 1,000,000 bytes", 1),
        ("claims", "1,000,000,000,000 bytes; at most 1,000,000 are fetched", 1),
        ("html", "no PNG, JPEG, WebP", 1),
        ("bomb", "decompression bomb", 1),
    ],
)
def test_what_cannot_be_downloaded_is_named_with_the_reason_and_the_rest_is_downloaded(
    server, tmp_path, path, message, times
):
    bad, good = server.url(path), server.url("image/7")
    done = fetch([bad, good], tmp_path, max_bytes=10**6, timeout_seconds=0.3)
    assert (done.num_new, done.num_failed) == (1, 1)
    assert message in failures(tmp_path)[bad]
    assert times in (None, server.requests[f"/{path}"])
    assert had(tmp_path) == {url_name(good): image_bytes(7)}


def test_large_images_are_refused_by_their_pixels(server, tmp_path):
    fetch([server.url("image/1")], tmp_path, max_pixels=3599)
    assert "image of 60 x 60 pixels; at most 3,599 are kept" in failures(tmp_path)[server.url("image/1")]


def test_a_request_is_repeated_after_the_time_that_the_server_names(server, tmp_path):
    assert fetch([server.url("twice/3")], tmp_path).num_new == 1
    assert server.requests["/twice/3"] == 2


def test_few_requests_go_to_one_host_at_a_time(server, tmp_path):
    urls = [server.url(f"slow/{number}") for number in range(12)]
    assert fetch(urls, tmp_path, per_host=3, concurrency=50).num_new == 12
    assert 1 < server.most_at_once <= 3


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0"])
def test_private_addresses_are_refused_by_number_and_by_name(server, tmp_path, host):
    url = server.url("image/1", host)
    fetch([url], tmp_path, allow=())
    assert "is at a private or loopback address" in failures(tmp_path)[url]
    assert not server.requests


def test_a_redirect_leads_nowhere_that_is_not_allowed(server, tmp_path):
    url = server.redirect(server.url("image/1", "localhost"))
    fetch([url], tmp_path)
    assert failures(tmp_path)[url] == "localhost is at a private or loopback address"
    assert server.requests["/image/1"] == 0
    done = fetch([url], tmp_path, allow=("127.0.0.1", "localhost"))
    assert done.num_new == 1


def test_redirects_end_and_lead_to_no_file(server, tmp_path):
    to_file, relative = server.redirect("file:///etc/passwd"), server.redirect("/image/4")
    around = server.redirect("")  # to itself
    assert fetch([to_file, relative, around], tmp_path).num_new == 1
    assert failures(tmp_path) == {
        to_file: "only http and https are fetched, not file:///etc/passwd",
        around: "more than 5 redirects",
    }
    assert had(tmp_path) == {url_name(relative): image_bytes(4)}


@pytest.mark.parametrize("target", [b"http://\xff\xfe/", b"ftp://\xff/", b"/status/404?\xff\x1b"])
def test_a_redirect_of_garbage_is_a_failure_and_the_download_can_be_started_again(server, tmp_path, target):
    url = server.redirect(target)
    for _ in range(2):
        assert fetch([url, server.url("image/4")], tmp_path, tries=1).num_failed == 1
        assert failures(tmp_path)[url].isprintable()
    assert set(had(tmp_path)) == {url_name(server.url("image/4"))}


def test_a_url_with_half_a_character_is_a_failure(server, tmp_path):
    done = fetch([server.url("image/\ud800"), server.url("image/4")], tmp_path)
    assert (done.num_new, done.num_failed) == (1, 1)
    assert list(failures(tmp_path)) == [server.url("image/\\ud800")]


def test_a_signed_url_is_requested_as_it_is_and_what_no_url_may_hold_is_escaped(server, tmp_path):
    signed = "image/a%2Fb%7e%3D?Signature=a%2Bb%2f~c%3D&Key=x+y%20z"
    assert fetch([server.url(signed), server.url("image/ä b")], tmp_path).num_new == 2
    assert set(server.requests) == {f"/{signed}", "/image/%C3%A4%20b"}


def test_retry_after_is_a_number_of_seconds_or_a_date():
    assert retry_after_seconds("7") == 7
    assert 28 < retry_after_seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=30))) <= 30
    for text in (None, "soon", "Wed, 99 Nov 99999 08:49:37 GMT", format_datetime(datetime(2001, 1, 1))):
        assert retry_after_seconds(text) <= 0


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("10.1.2.3", False), ("192.168.0.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("::1", False), ("fe80::1%eth0", False),
        ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False), ("224.0.0.1", False), ("0.0.0.0", False), ("fd00::1", False),
        ("fec0::1", False), ("::10.0.0.1", False), ("::ffff:0:10.0.0.1", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) is public


def test_other_urls_are_refused(tmp_path):
    urls = ["ftp://example.org/a.jpg", "http:///a.jpg", "http://[::1", "pipe:touch owned"]
    assert fetch(urls, tmp_path).num_failed == 4


def test_only_one_download_writes_a_folder(server, tmp_path):
    def urls() -> Iterator[str]:
        with pytest.raises(DataError, match="another download is writing to it"):
            fetch([server.url("image/1")], tmp_path)
        yield server.url("image/2")

    assert (
        download(urls(), tmp_path, DownloadLimits(**QUICK, allowed_hosts=frozenset({"127.0.0.1"}))).num_new
        == 1
    )


def test_a_tar_that_a_killed_download_had_just_begun_is_gone(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MUCO_CACHE", str(tmp_path / "cache"))
    fetch([server.url("image/1")], tmp_path / "to")
    (tmp_path / "to/images-000001.tar").write_bytes(b"x" * 700)
    fetch([], tmp_path / "to")
    assert ImageFiles([tmp_path / "to"]).image(server.url("image/1")).data == image_bytes(1)


@pytest.mark.process
def test_killed_and_started_again_it_has_every_image_once(server, tmp_path):
    rows = [{"text": "t", "image": server.url(f"slow/{number}")} for number in range(400)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    command = [
        sys.executable, "-m", "muco", "data", "download", "pairs", "--from", str(tmp_path / "mine.jsonl"),
        "--to", str(tmp_path / "images"), "--allow-host", "127.0.0.1", "--per-host", "16",
        "--set", "columns={query_text: text, target_image: image}",
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while sum(server.requests.values()) < 150 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "fetched before, 0 failed" in done.stdout
    assert "fetched, 0 fetched before" not in done.stdout, "it continued"
    assert had(tmp_path / "images") == {
        url_name(row["image"]): image_bytes(number) for number, row in enumerate(rows)
    }
