"""What nearly every test needs: the registry, some shards, and a cache folder that is not the user's."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from muco.core.registry import Registry, default_registry
from muco.data.shards.writer import write_shards

# One thread a process, before torch is imported: pytest-xdist shares the cores, and sums round alike.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background ignores these for all of its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine is no failure, and a run of the tests is the same every time.
settings.register_profile("muco", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, derandomize=True, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "muco"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep shards that tests make out of the user's cache, for subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUCO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Every installed component."""
    return default_registry()


@pytest.fixture(scope="session")
def shards(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 drawn samples, dialogues of seven turns and single pairs, in several shards."""
    scenes = registry.component("source", "scenes")
    source = scenes(scenes.Config(num_samples=48))
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_shards(source.samples(), folder, metadata={"source": "scenes"}, max_shard_bytes=2**16)
    return folder


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium; nothing is downloaded for it."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=Service(driver))
    yield chromium
    chromium.quit()
