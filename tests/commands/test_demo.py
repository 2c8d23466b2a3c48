"""The search page, used in a browser."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from typer.testing import CliRunner

import muco
from muco.commands.main import app
from tests.helpers.models import write_model
from tests.helpers.processes import MUCO
from tests.helpers.small import picture


@pytest.mark.browser
@pytest.mark.process
def test_the_page_finds_images_by_text_and_by_image(tmp_path, browser):
    if not find_spec("gradio"):
        pytest.skip("gradio is not installed")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for colour in ("red", "green", "blue"):
        (folder / f"{colour}.png").write_bytes(picture(colour, (56, 56)).data)
    model = write_model(tmp_path / "model")
    CliRunner().invoke(app, ["encode", str(model), str(folder), "--to", str(tmp_path / "s.parquet")])
    command = [*MUCO, "demo", "s.parquet"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[2]
            assert address.startswith("http://127.0.0.1:")
            with pytest.raises(HTTPError, match="403"):  # the page gets copies, and no file of the folder
                urlopen(f"{address.rstrip('/')}/gradio_api/file={folder / 'red.png'}")
            wait = WebDriverWait(browser, 60)
            browser.get(address)
            text = wait.until(lambda b: b.find_elements(By.TAG_NAME, "textarea"))[0]
            text.send_keys("a red disc", Keys.ENTER)
            hits = muco.load(model).search(tmp_path / "s.parquet", "a red disc", 3)
            assert captions(wait) == [hit.id for hit in hits]
            text.clear()
            upload = browser.find_element(By.CSS_SELECTOR, "input[type=file]")
            upload.send_keys(str(folder / "blue.png"))
            wait.until(lambda _: captions(wait)[0] == "blue.png")
        finally:
            server.kill()


def captions(wait: WebDriverWait) -> list[str]:
    """Return the ids below the three nearest images, the best first."""

    def three(browser):
        shown = browser.find_elements(By.CSS_SELECTOR, ".caption-label")
        texts = [each.text.split()[-1] for each in shown if each.text]
        return texts if len(texts) == 3 else None

    return wait.until(three)
