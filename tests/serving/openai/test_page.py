"""The page at `/` in headless Chromium: choose a picture, ask a question, see the streamed answer and the map."""

from __future__ import annotations

import base64
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from models import families
from serving.openai.conftest import Served

PHONE, DESK = (390, 844), (1200, 900)
EXAMPLE = "what is the type?"
COLOURS = """
const map = document.getElementById("map"), found = new Set();
const data = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
for (let i = 0; i < data.length; i += 4) found.add(data[i] > data[i + 2] ? 1 : 0);
return [...found];
"""


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here: apt install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


def shot(browser):
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(browser.get_screenshot_as_base64()))).convert("L")
    )


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_person_asks_about_a_picture(browser, served, opened, picture, tmp_path, size, scheme):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
    )
    browser.get(f"{served.url}/")
    corner = shot(browser)[2, 2]
    assert corner > 200 if scheme == "light" else corner < 60
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    file = tmp_path / "form.png"
    file.write_bytes(picture)
    browser.find_element(By.ID, "file").send_keys(str(file))
    prompt = browser.find_element(By.ID, "prompt")
    prompt.clear()
    prompt.send_keys(EXAMPLE)
    WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.images[0].naturalWidth") > 0)
    browser.find_element(By.ID, "ask").click()
    WebDriverWait(browser, 60).until(lambda b: b.find_element(By.ID, "facts").text)
    wanted = opened.generate(EXAMPLE, images=[picture], budget=0.1).text
    assert browser.find_element(By.ID, "answer").text == wanted.strip()
    assert "tokens a layer" in browser.find_element(By.ID, "facts").text
    colours = browser.execute_script(COLOURS)
    assert sorted(colours) == [0, 1], "some patches are kept, some are not"
    log = [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
    assert [entry for entry in log if entry["level"] == "SEVERE"] == []


def test_what_is_refused_is_shown(browser, served):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{served.url}/")
    prompt = browser.find_element(By.ID, "prompt")
    prompt.clear()
    prompt.send_keys("<image>")
    browser.find_element(By.ID, "ask").click()
    WebDriverWait(browser, 60).until(
        lambda b: b.find_element(By.ID, "answer").get_attribute("class") == "wrong"
    )
    assert "part of its own" in browser.find_element(By.ID, "answer").text


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """A server of a model that cuts pictures into tiles."""
    from vlkv_export.directory import export_checkpoint
    from vlkv_export.engine import build_engine

    base = tmp_path_factory.mktemp("tiled")
    export_checkpoint(families.build("next-mistral", base / "checkpoint"), base / "graphs")
    build_engine(base / "graphs", base / "engine")
    server = Served(base / "engine", base / "log", "--memory", "32MiB", "--threads", "1")
    yield server
    assert server.stop() == 0, server.log.read_text()


PAINTED = """
const map = document.getElementById("map"), found = [];
const pen = map.getContext("2d"), y = map.height / 2;
for (let x = 2; x < map.width; x += 4) found.push(pen.getImageData(x, y, 1, 1).data[3] > 0);
return found;
"""


def test_a_picture_in_tiles_is_covered_from_side_to_side(browser, tiled, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    file = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 200, 3), np.uint8)).save(file)
    browser.get(f"{tiled.url}/")
    browser.find_element(By.ID, "file").send_keys(str(file))
    WebDriverWait(browser, 60).until(
        lambda b: b.execute_script("return document.images[0].naturalWidth") == 200
    )
    browser.find_element(By.ID, "ask").click()
    WebDriverWait(browser, 120).until(lambda b: b.find_element(By.ID, "facts").text)
    painted = browser.execute_script(PAINTED)
    assert len(painted) == 50 and sum(painted) >= 48, "not the square in the middle alone"
