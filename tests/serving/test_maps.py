"""Maps of kept patches lie where the model saw the patches: a picture whose colours are its own coordinates tells."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models import families
from vlkv import Engine, Question
from vlkv.inputs.preprocess import grid_canvas, tiles
from vlkv.serving.maps import kept_maps
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine

SIZES = [(200, 60), (41, 150), (97, 97), (500, 420)]


@pytest.fixture(
    scope="module",
    params=["llava-clip-qwen3", "llava-siglip-qwen2", "next-mistral", "onevision", "llava-pixtral-mistral"],
)
def engine(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("maps")
    export_checkpoint(families.build(request.param, base / "checkpoint"), base / "graphs")
    build_engine(base / "graphs", base / "engine")
    opened = Engine.load(base / "engine", threads=1)
    yield opened
    opened.close()


def coordinates(width, height):
    """Red is the place across, green the place down, and blue says that it is no padding."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[:, :, 0] = np.linspace(0, 255, width)
    pixels[:, :, 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def part(found, width, height):
    """Left, top, right and bottom of a map in the picture, in pixels, as the page computes it."""
    if "box" in found:
        return np.array(found["box"]) * [width, height, width, height]
    if found["fit"] == "stretch":
        return np.array([0, 0, width, height])
    half = (min if found["fit"] == "crop" else max)(width, height) / 2
    return np.array([width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half])


def asked(engine, pictures, budget=0.3):
    with engine.scheduler(memory=64 << 20) as scheduler:
        prompt = " ".join(["<image>"] * len(pictures)) + " what is the total?"
        question = Question(prompt, pictures, policy="h2o", budget=budget, max_new_tokens=1)
        ticket = scheduler.submit(question)
        return ticket.wait(120), ticket.pictures


@pytest.mark.parametrize("size", SIZES)
def test_a_patch_lies_where_the_model_saw_it(engine, size):
    picture, facts = coordinates(*size), engine.manifest.image
    result, pictures = asked(engine, [picture])
    maps, (_, layout) = kept_maps(result, pictures, engine.manifest), pictures[0]
    assert [one["picture"] for one in maps] == [0] * len(layout.views)
    for found, view in zip(maps, reversed(layout.views), strict=True):
        seen = next(tiles(picture, layout, facts))
        if view.box is not None:
            left, top, right, bottom = view.box
            seen = grid_canvas(picture, layout, facts.resample)[top:bottom, left:right]
        rows, columns, checked = found["rows"], found["columns"], 0
        left, top, right, bottom = part(found, *size)
        for row in range(rows):
            for column in range(columns):
                y, x = (row + 0.5) / rows, (column + 0.5) / columns
                red, green, blue = seen[int(y * seen.shape[0]), int(x * seen.shape[1])].astype(float)
                across, down = (left + x * (right - left)) / size[0], (top + y * (bottom - top)) / size[1]
                if blue < 250 or not (0.05 < across < 0.95 and 0.05 < down < 0.95):
                    continue
                # a pixel of the tile, and two levels of colour
                assert abs(red / 255 - across) < (right - left) / size[0] / seen.shape[1] + 0.02
                assert abs(green / 255 - down) < (bottom - top) / size[1] / seen.shape[0] + 0.02
                checked += 1
        assert checked or min(rows, columns) < 2


def test_shares_are_those_of_layers_and_heads(engine):
    result, pictures = asked(engine, [coordinates(90, 80), coordinates(60, 70)])
    maps = kept_maps(result, pictures, engine.manifest)
    assert [one["picture"] for one in maps] == sorted(one["picture"] for one in maps)
    kept = [{int(slot) for slot in head} for layer in result.positions for head in layer]
    number = 0
    for first, layout in pictures:
        for view in reversed(layout.views):
            wanted = [sum(first + int(t) in head for head in kept) / len(kept) for t in view.tokens.ravel()]
            np.testing.assert_allclose(maps[number]["share"], wanted, atol=1e-3)
            assert (maps[number]["rows"], maps[number]["columns"]) == view.tokens.shape
            number += 1
    assert number == len(maps)
    assert 0 < np.mean(maps[0]["share"]) < 1
    whole, again = asked(engine, [coordinates(90, 80)], budget=1.0)
    assert set(kept_maps(whole, again, engine.manifest)[0]["share"]) == {1.0}


def test_places_of_pictures_are_those_of_their_tokens(engine):
    _, pictures = asked(engine, [coordinates(90, 80), coordinates(60, 70)])
    _, lone = asked(engine, [coordinates(90, 80)])
    assert pictures[0][0] == lone[0][0]
    assert pictures[1][0] >= pictures[0][0] + len(pictures[0][1].token_ids)
