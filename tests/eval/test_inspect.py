"""`vlkv inspect`: the page shows the result, works in a real browser, and fetches nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import families
from vlkv import POLICIES, Engine, Question
from vlkv.eval import forms
from vlkv.eval.inspect_files import write
from vlkv.eval.inspection import inspect
from vlkv.eval.page import page, page_data
from vlkv.eval.settings import Setting
from vlkv.inputs.layouts import lay_out
from vlkv.storage.image_facts import AnyRes, ImageFacts
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine

FORM = forms.held_out_form(900_000)
PROMPT = forms.one_question(FORM)[0]
EVIL = '</script><script>window.hit = 1</script> <b>what</b> & "is" <!-- the'


@pytest.fixture(scope="module")
def found(reader):
    asked = Question(PROMPT, [forms.draw(FORM)], max_new_tokens=8)
    return inspect(reader, asked, Setting(POLICIES["vl-cache"], 0.1))


def test_data_is_that_of_the_result(reader, found):
    asked = Question(PROMPT, [forms.draw(FORM)], policy="vl-cache", budget=0.1, max_new_tokens=8, scores=True)
    result = reader.generate_batch([asked])[0]
    data = page_data(found)
    shape = (data["layers"], data["heads"], data["tokens"])
    assert shape == (4, 2, result.prompt_tokens)
    bits = np.unpackbits(np.frombuffer(base64.b64decode(data["kept"]), np.uint8))[: np.prod(shape)].reshape(
        shape
    )
    for layer, positions in enumerate(result.positions):
        for head, own in enumerate(positions):
            np.testing.assert_array_equal(np.flatnonzero(bits[layer, head]), own)
    scores = np.frombuffer(base64.b64decode(data["scores"]), "<f4").reshape(shape)
    np.testing.assert_array_equal(scores, np.stack(result.scores))
    assert data["counts"] == result.kept_tokens and data["sparsity"] == result.sparsity
    assert data["small"]["text"] == result.text
    assert data["full"]["kept"] == 4 * result.prompt_tokens
    (pane,) = data["panes"]
    assert (pane["rows"], pane["columns"]) == (24, 24)
    assert pane["patches"] == list(range(1, 577))
    words = [word for word in data["words"] if word is not None]
    assert "".join(words) == f"<s>{PROMPT}\nA:" and data["words"][1] is None


@pytest.mark.parametrize(("tokens", "height", "width", "grid"), [
    (576, 336, 336, (24, 24, 0)), (577, 336, 336, (24, 24, 1)), (6, 28, 42, (2, 3, 0)), (7, 28, 42, (2, 3, 1)),
    (1, 14, 14, (1, 1, 0)), (11, 28, 28, (1, 11, 0)),
])  # fmt: skip
def test_patch_grid(reader, tokens, height, width, grid):
    import msgspec

    facts = msgspec.structs.replace(reader.manifest.image, tile_features=tokens, height=height, width=width)
    (layout,) = lay_out([(height, width)], facts)
    (view,) = layout.views
    assert (*view.tokens.shape, view.tokens[0, 0]) == grid
    assert len(layout.token_ids) == tokens


def test_pictures(found, tmp_path):
    written = {path.name: path for path in write(found, tmp_path / "out")}
    assert set(written) == {"index.html", "bars.png", "kept.png", *(f"layer-{n}.png" for n in range(4))}
    assert set(written) == {path.name for path in (tmp_path / "out").iterdir()}
    with Image.open(written["layer-1.png"]) as sheet:
        sheet.load()
        pixels = np.asarray(sheet).astype(int)
    assert pixels.shape[1] > 4 * 336
    share = found.share(1)[found.panes[0].patches]
    top, left = 16 + 30, 16 + 336 + 16
    panel = pixels[top : top + 336, left : left + 336].reshape(24, 14, 24, 14, 3)
    corner = panel[:, 0, :, 0]
    orange = corner[..., 0] - corner[..., 2]
    assert (orange[share > 0] > 20).all() and (orange[share == 0] < 10).all()


@pytest.mark.parametrize("policy", ["full", "streaming-llm", "elastic", "snapkv"])
def test_pages_of_other_policies(engine_of, pictures, policy, tmp_path):
    engine = engine_of("llama-gqa-tied")
    budget = 1.0 if policy == "full" else 0.3
    seen = inspect(
        engine, Question("what is the total", pictures, max_new_tokens=4), Setting(POLICIES[policy], budget)
    )
    assert len(write(seen, tmp_path)) == 2 + 1 + 3
    assert page_data(seen)["observed"] == (POLICIES[policy].rows != "none")
    words = inspect(
        engine, Question("what is the total", (), max_new_tokens=4), Setting(POLICIES[policy], budget)
    )
    assert len(write(words, tmp_path / "words")) == 2


def test_texts_are_data_and_never_markup(engine_of, pictures):
    asked = Question(EVIL, pictures[:1], max_new_tokens=4)
    text = page(inspect(engine_of("llama-gqa-tied"), asked, Setting(POLICIES["vl-cache"], 0.5)))
    assert text.count("<script") == text.count("</script>") == 2
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data.group(1))["question"] == EVIL
    assert not re.search(r"https?://", text)


def tile_of(pane, row, column):
    """In which of a pane's tiles a token lies, by its tiles' borders."""
    return sum(begin <= row for begin in pane.down) - 1, sum(begin <= column for begin in pane.across) - 1


@pytest.fixture(scope="module")
def onevision(tmp_path_factory):
    base = tmp_path_factory.mktemp("onevision")
    folder = families.build("onevision", base / "checkpoint")
    export_checkpoint(folder, base / "graphs")
    build_engine(base / "graphs", base / "engine")
    return Engine.load(base / "engine", threads=1)


@pytest.fixture(scope="module")
def tiled(onevision):
    """A picture that is a grid of tiles, and a video: a large picture whose grid is not scaled down."""
    asked = Question(
        "what is the total", [families.picture("wide")], max_new_tokens=4,
        videos=[[families.picture("tall"), families.picture("exact"), families.picture("odd")]],
    )  # fmt: skip
    return inspect(onevision, asked, Setting(POLICIES["vl-cache"], 0.3))


def test_tiles_lie_in_their_places(onevision, tiled):
    """Each token is in the tile whose features it is made of, by the row of the tower's features."""
    names = [pane.name for pane in tiled.panes]
    assert names == [
        "picture 1: whole",
        "picture 1: 1 x 3 tiles",
        "video 1, frame 1",
        "video 1, frame 2",
        "video 1, frame 3",
    ]
    (layout, *_) = onevision.prompt(Question("x", [families.picture("wide")], raw=True)).pictures
    grid = tiled.panes[1]
    (view,) = layout.views[1:]
    for (row, column), token in np.ndenumerate(view.tokens):
        source = layout.sources[token, 0]
        tile = source // 10 - 1
        assert tile_of(grid, row, column) == divmod(tile, 3)
    assert [len(part) for part in grid.tiles()] == [3]
    np.testing.assert_array_equal(np.concatenate(grid.tiles()[0], axis=1), grid.patches)


def test_counts_of_tiles_and_frames(tiled):
    """Lines on the terminal say what `kept` says; every image token is counted once."""
    places = [pane.patches.reshape(-1) for pane in tiled.panes] + list(tiled.apart.values())
    every = np.sort(np.concatenate(places))
    np.testing.assert_array_equal(every, np.sort(tiled.small.image_positions))
    assert list(tiled.apart) == ["picture 1: row ends", "video 1, frame 3: newline"]
    lines = tiled.counts()
    assert len(lines) == len(tiled.panes) + 1 + len(tiled.apart) + 1
    share = tiled.kept.mean(axis=(0, 1))
    text = [n for n in range(len(share)) if n not in tiled.small.image_positions]
    kept = share[text].sum()
    assert lines[-1] == f"text: {kept:.1f} of {len(text)} tokens ({kept / len(text):.1%})"
    for line, pane in zip([lines[0], lines[1], *lines[3:6]], tiled.panes, strict=True):
        kept, size = share[pane.patches].sum(), pane.patches.size
        assert line == f"{pane.name}: {kept:.1f} of {size} tokens ({kept / size:.1%})"
    said = [float(part) for part in re.findall(r"([\d.]+)%", lines[2])]
    want = [100 * share[tile].mean() for tile in tiled.panes[1].tiles()[0]]
    np.testing.assert_allclose(said, want, atol=0.051)


def test_shrunk_grids_have_every_tile():
    """A grid that is scaled down: a token belongs to the tile that it has most of."""
    facts = families_facts(shrink_to=3)
    (layout,) = lay_out([(500, 420)], facts)
    view = layout.views[1]
    assert (len(view.down), len(view.across)) == layout.grid == (3, 3)
    assert layout.weights is not None
    for (row, column), token in np.ndenumerate(view.tokens):
        most = layout.sources[token, layout.weights[token].argmax()]
        tile = sum(b <= row for b in view.down) - 1, sum(b <= column for b in view.across) - 1
        assert tile == divmod(most // facts.tile_features - 1, 3)


def families_facts(**rule):
    pinpoints = tuple((height, width) for height in (42, 84, 126) for width in (42, 84, 126))
    return ImageFacts(
        token_id=4, token="<image>", tile_features=10, height=42, width=42, resize="exact", resize_height=42,
        resize_width=42, crop=False, pad_to_square=False, resample=3, rescale=1.0, normalize=False, mean=(0, 0, 0),
        std=(1, 1, 1), rule=AnyRes(pinpoints=pinpoints, rows=3, columns=3, **rule),
    )  # fmt: skip


def test_files_of_tiles_and_frames(tiled, tmp_path):
    data = page_data(tiled)
    assert [pane["name"] for pane in data["panes"]] == [pane.name for pane in tiled.panes]
    assert data["panes"][1]["across"] == tiled.panes[1].across and len(tiled.panes[1].across) == 3
    assert data["apart"][0] == {
        "name": "picture 1: row ends",
        "places": tiled.apart["picture 1: row ends"].tolist(),
    }
    assert len(write(tiled, tmp_path)) == 2 + 1 + 2


def test_large_sheets_are_drawn_smaller(tiled, monkeypatch):
    from vlkv.eval import pictures

    whole = pictures.kept_sheet(tiled).size
    monkeypatch.setattr(pictures, "MOST", 20_000)
    assert pictures.kept_sheet(tiled).size[0] < whole[0]


def test_captions_in_a_browser(browser, tiled, tmp_path):
    write(tiled, tmp_path)
    window = browser(1200, "light")
    opened(window, tmp_path / "index.html")
    captions = window.execute_script(
        "return [...document.querySelectorAll('figcaption')].map((c) => c.innerText)"
    )
    share = tiled.share()
    for caption, pane in zip(captions, tiled.panes, strict=True):
        kept, size = int(share[pane.patches].sum() + 0.5), pane.patches.size
        assert caption == f"{pane.name}: {kept} of {size} kept"
    plain = painted(window)
    assert plain and window.get_log("browser") == []
    ends = window.execute_script("return document.getElementById('apart').innerText")
    assert "picture 1: row ends" in ends and "newline" in ends


@pytest.fixture
def browser(monkeypatch):
    """Starts a real headless Chromium with a window width and a theme."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here: apt install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    monkeypatch.setenv("SE_OFFLINE", "true")
    opened, folders = [], []

    def start(width: int, theme: str):
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        folders.append(tempfile.mkdtemp())
        for flag in (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folders[-1]}",
        ):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        window = webdriver.Chrome(options=options, service=service.Service(driver))
        opened.append(window)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return window

    yield start
    for window in opened:
        window.quit()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def opened(window, path: Path) -> None:
    window.get(path.as_uri())
    until = time.monotonic() + 30
    while not window.execute_script(
        "return document.documentElement.dataset.ready === 'true' && document.images[0].complete"
    ):
        assert time.monotonic() < until, window.get_log("browser")
        time.sleep(0.05)


def requests(window, page_itself: str) -> list[str]:
    """Returns the addresses that the page requested, without those of the browser's own start page."""
    messages = [json.loads(entry["message"])["message"] for entry in window.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"] == page_itself
    ]


@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (390, "dark")])
def test_page_in_a_browser(browser, found, tmp_path, width, theme):
    write(found, tmp_path)
    window = browser(width, theme)
    opened(window, tmp_path / "index.html")
    script = window.execute_script

    def text(name):
        return script("return document.getElementById(arguments[0]).innerText", name)

    assert text("question") == PROMPT
    assert text("answer-full") == found.full.text and text("answer-small") == found.small.text
    total = sum(found.small.kept_tokens)
    assert f"{total}" in text("now") and "All layers" in text("now")
    assert script("return document.documentElement.scrollWidth") <= width
    ground = script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (theme == "dark")

    walk = "const s = document.getElementById('layer'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    script(walk, 2)
    assert f"Layer 2 keeps {found.small.kept_tokens[2] / found.small.prompt_tokens:.1%}" in text("now")
    kept = found.kept[2].mean(axis=0)
    patches = found.panes[0].patches.reshape(-1)
    patch = int(np.argmax(kept[patches] * 1000 + found.scores[2].sum(axis=0)[patches]))
    point(window, patch)
    token = int(patches[patch])
    assert f"token {token}" in text("probe")
    score = float(re.search(r"Score (\S+)", text("probe")).group(1))
    assert score == pytest.approx(found.scores[2, :, token].sum(), rel=1e-2)
    assert f"Kept by {round(kept[token] * 2)} of 2 heads" in text("probe")
    script("document.querySelector('#heads [data-value=\"1\"]').click()")
    point(window, patch)
    assert ("Kept" if found.kept[2, 1, token] else "Evicted") in text("probe")
    colours = painted(window)
    script("document.querySelector('#views [data-value=\"score\"]').click()")
    assert painted(window) != colours
    script("document.querySelectorAll('#bars button')[0].click()")
    assert "Layer 0" in text("now")

    assert window.get_log("browser") == []
    page_itself = (tmp_path / "index.html").as_uri()
    assert {url for url in requests(window, page_itself) if not url.startswith("data:")} == {page_itself}


def test_a_broken_page_is_found(browser, found, tmp_path):
    """Proves that the assertions of the test above can fail."""
    write(found, tmp_path)
    broken = (tmp_path / "index.html").read_text().replace('"use strict";', '"use strict"; nothing();', 1)
    broken = broken.replace("<body>", '<body><img src="http://127.0.0.1:9/a.png">')
    (tmp_path / "index.html").write_text(broken)
    window = browser(800, "light")
    window.get((tmp_path / "index.html").as_uri())
    time.sleep(0.5)
    said = " ".join(entry["message"] for entry in window.get_log("browser"))
    assert "nothing is not defined" in said and "Content Security Policy" in said
    asked = requests(window, (tmp_path / "index.html").as_uri())
    assert any(url.startswith("file:") for url in asked)


def point(window, patch: int) -> None:
    """Moves a pointer to the middle of a patch."""
    window.execute_script(
        """const canvas = document.querySelector('canvas'), area = canvas.getBoundingClientRect();
        const x = area.left + (arguments[0] % 24 + 0.5) * area.width / 24;
        const y = area.top + (Math.floor(arguments[0] / 24) + 0.5) * area.height / 24;
        const event = { clientX: x, clientY: y, bubbles: true, pointerType: 'mouse' };
        canvas.dispatchEvent(new PointerEvent('pointermove', event));""",
        patch,
    )


def painted(window) -> str:
    return window.execute_script("return document.querySelector('canvas').toDataURL()")
