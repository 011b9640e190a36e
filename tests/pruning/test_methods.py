"""What each pruning method keeps of random pictures, compared with the oracle; ties, empty and single tokens."""

from __future__ import annotations

import numpy as np
import pytest

from oracles import prune as oracle
from vlkv.errors import PolicyError
from vlkv.inputs.layouts import Layout, View, lay_out
from vlkv.pruning.blank import Blank
from vlkv.pruning.diverse import BLOCK, Diverse, most_diverse
from vlkv.pruning.duplicates import Duplicates
from vlkv.pruning.methods import resolve_prune
from vlkv.pruning.picture import Picture, unit_rows
from vlkv.pruning.relevant import NEIGHBOURS, Relevant, most_probable, relevance
from vlkv.storage.image_facts import AnyRes, Fixed, ImageFacts, Rows

PATCH = 6


def facts(rows, columns, features, rule=None):
    return ImageFacts(
        token_id=9, token="<image>", tile_features=features, height=rows * PATCH, width=columns * PATCH,
        resize="none", resize_height=0, resize_width=0, crop=False, pad_to_square=False, resample=3, rescale=1.0,
        normalize=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), rule=rule or Fixed(),
    )  # fmt: skip


def patches_of(rng, count):
    """Patches of few kinds: blank in two colours, and with one different pixel."""
    kinds = []
    for colour in rng.choice(256, 2, replace=False):
        blank = np.full((3, PATCH, PATCH), colour, np.float32)
        dotted = blank.copy()
        dotted[1, 2, 3] = 255 - colour
        kinds += [blank, dotted]
    striped = np.broadcast_to(np.float32([[[0]], [[1]], [[2]]]), (3, PATCH, PATCH))
    kinds.append(striped)
    return [kinds[n] for n in rng.integers(0, len(kinds), count)]


def tile_of(patches, rows, columns):
    grid = np.stack(patches).reshape(rows, columns, 3, PATCH, PATCH)
    return grid.transpose(2, 0, 3, 1, 4).reshape(3, rows * PATCH, columns * PATCH)


def picture(tiles, layout, of, features=None):
    rows = len(layout.sources)
    features = np.zeros((rows, 4), np.float32) if features is None else features
    return Picture(np.ascontiguousarray(np.stack(tiles)), features, layout, of)


@pytest.mark.parametrize(("method", "blank_only"), [(Duplicates(), False), (Blank(), True)])
def test_equal_patches_of_one_tile(rng, method, blank_only):
    for rows, columns, skipped in ((1, 1, 0), (3, 5, 0), (4, 3, 1), (7, 7, 0)):
        patches = patches_of(rng, rows * columns)
        of = facts(rows, columns, rows * columns + skipped)
        layout = lay_out([(30, 30)], of)[0]
        kept = method.keep(picture([tile_of(patches, rows, columns)], layout, of))
        assert kept.tolist() == [True] * skipped + oracle.first_of_each(patches, blank_only)


@pytest.mark.parametrize(("method", "blank_only"), [(Duplicates(), False), (Blank(), True)])
def test_equal_patches_of_a_grid_of_tiles(rng, method, blank_only):
    """LLaVA-NeXT: overview and grid count as one picture, and newlines stay."""
    rows = columns = 3
    rule = AnyRes(pinpoints=((2 * rows * PATCH, columns * PATCH),), rows=rows, columns=columns)
    of = facts(rows, columns, rows * columns + 1, rule)
    layout = lay_out([(18, 36)], of)[0]
    patches = patches_of(rng, 27)
    tiles = [tile_of(patches[first : first + 9], rows, columns) for first in (0, 9, 18)]
    kept = method.keep(picture(tiles, layout, of))
    want = iter(oracle.first_of_each(patches, blank_only))
    newlines = set(range(12, 9 + 6 * 4, 4))
    assert len(kept) == 9 + 6 * 4
    assert kept.tolist() == [True if n in newlines else next(want) for n in range(len(kept))]


@pytest.mark.parametrize(("method", "blank_only"), [(Duplicates(), False), (Blank(), True)])
def test_equal_patches_of_rows(rng, method, blank_only):
    """Pixtral: features are of patches alone; the tokens at the ends of rows have none."""
    of = facts(4, 5, 20, Rows(patch=PATCH, longest=(4 * PATCH, 5 * PATCH), break_id=3, end_id=4))
    layout = lay_out([(5 * PATCH, 4 * PATCH)], of)[0]
    patches = patches_of(rng, 20)
    kept = method.keep(picture([tile_of(patches, 4, 5)], layout, of))
    assert kept.tolist() == oracle.first_of_each(patches, blank_only)


def test_interpolated_tokens_are_equal_only_with_equal_weights():
    of = facts(1, 4, 4)
    blank, other = np.zeros((3, PATCH, PATCH), np.float32), np.ones((3, PATCH, PATCH), np.float32)
    sources = np.array([[0, 1], [2, 3], [0, 3], [1, 2]])
    weights = np.float32([[0.5, 0.5], [0.5, 0.5], [0.25, 0.75], [0.5, 0.5]])
    layout = Layout(
        size=(24, 6), tiles=(6, 24), scaled=(24, 6), token_ids=np.full(4, 9), has_features=np.ones(4, bool),
        sources=sources, weights=weights, views=(View(np.arange(4)[None]),),
    )  # fmt: skip
    tiles = [tile_of([blank] * 4, 1, 4)]
    assert Duplicates().keep(picture(tiles, layout, of)).tolist() == [True, False, True, False]
    tiles = [tile_of([blank, blank, other, blank], 1, 4)]
    assert Duplicates().keep(picture(tiles, layout, of)).tolist() == [True, True, True, True]


def test_tokens_without_a_grid_of_patches_all_stay():
    of = facts(2, 2, 7)  # 7 features are no rectangle of square patches
    layout = lay_out([(12, 12)], of)[0]
    for method in (Duplicates(), Blank()):
        assert method.keep(picture([np.zeros((3, 12, 12), np.float32)], layout, of)).all()


def test_diverse_chooses_the_farthest_at_each_step(rng):
    for count, hidden, wanted in ((1, 3, 1), (2, 8, 1), (57, 16, 20), (BLOCK + 41, 8, 30), (40, 5, 40)):
        features = rng.normal(size=(count, hidden)).astype(np.float32)
        features[rng.random(count) < 0.1] = 0.0
        features[rng.integers(0, count, count // 4)] = features[0]
        chosen = most_diverse(features, wanted).tolist()
        assert len(set(chosen)) == wanted
        # unit vectors are rounded twice and their product adds `hidden` terms, all in float32
        margin = 2.0**-23 * (hidden + 4)
        for got, best in oracle.greedy_steps(features, chosen):
            assert got >= best - margin


def test_relevant_takes_the_largest_determinant_at_each_step(rng):
    for count, hidden, words, wanted in ((1, 3, 1, 1), (2, 8, 2, 2), (40, 48, 5, 12), (70, 96, 3, 25)):
        features = rng.normal(size=(count, hidden)).astype(np.float32)
        question = rng.normal(size=(words, hidden)).astype(np.float32)
        unit = unit_rows(features)
        weights = relevance(unit, question)
        # cosines of float32 rows, scaled to the range that they have, at least a tenth
        np.testing.assert_allclose(
            weights, oracle.relevance(features, question, NEIGHBOURS), atol=2.0**-23 * (hidden + 4) * 10
        )
        chosen = [n for n in most_probable(unit, weights, wanted).tolist() if weights[n] ** 2 > 1e-6]
        assert len(set(chosen)) == len(chosen)
        for got, best in oracle.determinant_steps(features, weights, chosen):
            assert got >= best - 2.0**-23 * (hidden + 4) * len(chosen)


def test_relevant_fills_up_with_the_most_relevant():
    """Where the rest repeats what was chosen, relevance decides, then order."""
    unit = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)
    weights = np.array([0.5, 1.0, 0.5, 0.9, 0.2, 0.2, 0.8, 0.2])
    assert most_probable(unit, weights, 5).tolist() == [1, 6, 3, 0, 2]
    assert most_probable(unit, weights, 8).tolist() == [1, 6, 3, 0, 2, 4, 5, 7]
    assert most_probable(np.zeros((4, 3), np.float32), np.ones(4), 3).tolist() == [0, 1, 2]
    assert relevance(unit, np.zeros((0, 2), np.float32)).tolist() == [1.0] * 8
    assert relevance(unit, np.zeros((2, 2), np.float32)).tolist() == [1.0] * 8
    # the neighbours of what the question names
    features = np.zeros((30, 3), np.float32)
    features[:, 1], features[17] = 1.0, (1, 0, 0)
    found = relevance(features, np.float32([[2, 0, 0]]))
    assert np.flatnonzero(found == 1).tolist() == list(range(17 - NEIGHBOURS // 2, 18 + NEIGHBOURS // 2))


def test_diverse_breaks_ties_by_order_and_keeps_at_least_one():
    assert most_diverse(np.ones((5, 3), np.float32), 3).tolist() == [0, 1, 2]
    of = facts(2, 2, 5)
    layout = lay_out([(12, 12)], of)[0]
    one = picture([np.zeros((3, 12, 12), np.float32)], layout, of, np.ones((5, 4), np.float32))
    assert Diverse(0.01).keep(one).tolist() == [True, True, False, False, False]  # a class token stays
    assert Diverse(1.0).keep(one).all()
    bad = picture([np.zeros((3, 12, 12), np.float32)], layout, of, np.full((5, 4), np.nan, np.float32))
    assert Diverse(0.5).keep(bad).sum() == Relevant(0.5).keep(bad).sum() == 3
    assert Relevant(1.0).keep(one).all()
    assert Relevant(0.01).keep(one).tolist() == [True, True, False, False, False]


def test_share_is_rounded_half_up(rng):
    of = facts(2, 5, 10)
    layout = lay_out([(12, 12)], of)[0]
    seen = picture(
        [np.zeros((3, 12, 30), np.float32)], layout, of, rng.normal(size=(10, 4)).astype(np.float32)
    )
    assert [int(Diverse(share).keep(seen).sum()) for share in (0.04, 0.14, 0.15, 0.25, 0.96)] == [
        1,
        1,
        2,
        3,
        10,
    ]


def test_a_picture_without_patches_keeps_its_tokens():
    layout = Layout(
        size=(6, 6), tiles=(6, 6), scaled=(6, 6), token_ids=np.full(2, 9), has_features=np.ones(2, bool),
        sources=np.array([[0], [1]]), views=(View(np.zeros((0, 0), np.int64)),),
    )  # fmt: skip
    seen = picture([np.zeros((3, 6, 6), np.float32)], layout, facts(1, 1, 2))
    for method in (Duplicates(), Blank(), Diverse(0.5), Relevant(0.5)):
        assert method.keep(seen).all()


def test_names():
    assert resolve_prune(None) is None
    assert resolve_prune("duplicates") == Duplicates()
    assert resolve_prune("blank") == Blank()
    assert resolve_prune("diverse:0.25") == Diverse(0.25)
    assert resolve_prune("relevant:0.25") == Relevant(0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown prune ''; known: duplicates, blank, diverse:SHARE, relevant:SHARE"),
        ("dup", "unknown prune 'dup'"),
        ("diverse", "unknown prune 'diverse'"),
        ("duplicates:0.5", "unknown prune 'duplicates:0.5'"),
        ("diverse:", "'' is not a number"),
        ("diverse:x", "'x' is not a number"),
        ("diverse:0", r"diverse:0 is outside \(0, 1\]"),
        ("diverse:1.5", "outside"),
        ("diverse:nan", "outside"),
        ("relevant:0", r"relevant:0 is outside \(0, 1\]"),
        ("relevant:two", "'two' is not a number"),
    ],
)
def test_wrong_names(text, message):
    with pytest.raises(PolicyError, match=message):
        resolve_prune(text)
