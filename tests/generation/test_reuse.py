"""`Reuse`: what is held, within which bytes, and under which names."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from vlkv.backend.cache import Cache
from vlkv.generation.reuse import Names, Reuse, names_of
from vlkv.inputs.prompt import Prompt

SIZES = SimpleNamespace(layers=2, kv_heads=2, head_dim=4)
TOKEN = 2 * 2 * 2 * 4 * 4
"""Bytes of a token's keys and values."""


def upto(most):
    return lambda tokens: max(0, min(tokens, most))


def names(*ends, mark="a"):
    made = tuple(f"{mark}{end}".encode() for end in ends)
    return Names(tuple(b"picture " + one for one in made), made, ends)


def filled(rng, tokens, spare=3):
    cache = Cache.empty(SIZES, tokens + spare)
    for array in (*cache.keys, *cache.values):
        array[:] = rng.normal(size=array.shape)
    cache.length[:] = tokens
    return cache


def equal(one, other, tokens):
    pairs = zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
    return all(np.array_equal(a[:, :, :tokens], b[:, :, :tokens]) for a, b in pairs)


def test_a_beginning_comes_back_bit_for_bit(rng):
    reuse, whole, asked = Reuse(1 << 20), filled(rng, 50), names(30)
    kept = [array.copy() for array in whole.keys]
    assert reuse.known(asked, upto(40)) == 0
    reuse.save(asked, whole)
    assert reuse.bytes == 30 * TOKEN
    other = Cache.empty(SIZES, 60)
    for array in whole.keys:
        array[:] = 0  # what is held is a copy
    assert reuse.known(asked, upto(40)) == 30
    reuse.load(asked, 30, other)
    assert all(np.array_equal(a[:, :, :30], b[:, :, :30]) for a, b in zip(other.keys, kept, strict=True))
    assert not other.keys[0][:, :, 30:].any()
    assert (other.length == 30).all()
    assert (reuse.hits, reuse.misses, reuse.tokens) == (1, 1, 30)


def test_no_more_is_reused_than_may_be(rng):
    reuse, asked = Reuse(1 << 20), names(30)
    reuse.save(asked, filled(rng, 50))
    assert reuse.known(asked, upto(12)) == 12
    assert reuse.known(asked, upto(0)) == reuse.known(asked, upto(-5)) == 0
    assert (reuse.hits, reuse.misses) == (1, 2)


def test_the_longest_beginning_counts(rng):
    reuse, short, long = Reuse(1 << 20), names(20), names(20, 40)
    reuse.save(short, filled(rng, 25))
    assert reuse.known(long, upto(100)) == 20
    whole = filled(rng, 45)
    reuse.save(long, whole)
    assert reuse.known(long, upto(100)) == 40
    other = Cache.empty(SIZES, 45)
    reuse.load(long, 40, other)
    assert equal(whole, other, 40)


def test_the_least_recently_used_goes_first(rng):
    reuse = Reuse(3 * 10 * TOKEN)
    asked = [names(10, mark=mark) for mark in "abcd"]
    for one in asked[:3]:
        reuse.save(one, filled(rng, 12))
    reuse.known(asked[0], upto(10))
    reuse.touch(asked[1])
    reuse.save(asked[3], filled(rng, 12))
    assert [reuse.known(one, upto(10)) for one in asked] == [10, 10, 0, 10]
    assert reuse.bytes == 30 * TOKEN


def test_what_does_not_fit_is_not_held_and_evicts_nothing(rng):
    reuse = Reuse(20 * TOKEN)
    reuse.save(names(10), filled(rng, 12))
    reuse.save(names(21), filled(rng, 30))
    reuse.save_features(b"large", np.zeros(20 * TOKEN + 1, np.uint8))
    assert reuse.known(names(10), upto(10)) == 10
    assert reuse.bytes == 10 * TOKEN
    nothing = Reuse(0)
    nothing.save(names(1), filled(rng, 12))
    nothing.save_features(b"one", np.zeros((1, 1), np.float32))
    assert nothing.bytes == 0


def test_requests_come_first(rng):
    reuse = Reuse(100 * TOKEN)
    for mark in "abc":
        reuse.save(names(10, mark=mark), filled(rng, 12))
    reuse.fit(25 * TOKEN)
    assert reuse.bytes == 20 * TOKEN
    reuse.save(names(26), filled(rng, 30))
    assert reuse.bytes == 20 * TOKEN
    reuse.fit(-1)
    assert reuse.bytes == 0
    reuse.fit(1 << 40)
    reuse.save(names(101), filled(rng, 102))
    assert reuse.bytes == 0
    reuse.save(names(100), filled(rng, 102))
    assert reuse.bytes == 100 * TOKEN
    reuse.clear()
    assert reuse.bytes == 0
    assert reuse.known(names(100), upto(10)) == 0


def test_features(rng):
    reuse, features = Reuse(1 << 20, beginnings=False), rng.normal(size=(5, 3)).astype(np.float32)
    assert reuse.features(b"one") is None
    reuse.save_features(b"one", features)
    assert np.array_equal(reuse.features(b"one"), features)
    assert reuse.bytes == features.nbytes
    assert (reuse.picture_hits, reuse.picture_misses) == (1, 1)
    reuse.save(names(10), filled(rng, 12))
    assert reuse.bytes == features.nbytes, "keys and values were kept where they must not be"


def layout(**other):
    facts = {"size": (4, 4), "tiles": (4, 4), "count": 1, "grid": (0, 0), "scaled": (4, 4)} | other
    return SimpleNamespace(sources=np.zeros((3, 1), np.int64), frame=None, **facts)


def prompt(tokens, layouts, first=1):
    positions = np.concatenate([np.arange(3) + first + 4 * n for n in range(len(layouts))])
    return Prompt("", np.array(tokens), positions, int(positions[-1]), tuple(layouts))


def test_names_tell_contents_apart(rng):
    one, other = (rng.normal(size=(1, 3, 4, 4)).astype(np.float32) for _ in range(2))
    tokens = [1, 9, 9, 9, 5, 9, 9, 9, 2, 3]
    base = names_of(prompt(tokens, [layout()] * 2), [one, other])
    assert base.ends == (4, 8)
    assert len({*base.pictures, *base.beginnings}) == 4
    question = names_of(prompt([*tokens[:8], 7, 7, 7], [layout()] * 2), [one.copy(), other])
    assert question == base
    fewer = names_of(prompt(tokens, [layout()]), [one])
    assert fewer.beginnings == base.beginnings[:1]
    swapped = names_of(prompt(tokens, [layout()] * 2), [other, one])
    assert not {*swapped.beginnings} & {*base.beginnings}
    assert {*swapped.pictures} == {*base.pictures}
    system = names_of(prompt([8, *tokens[1:]], [layout()] * 2), [one, other])
    assert system.pictures == base.pictures
    assert not {*system.beginnings} & {*base.beginnings}
    bit = one.copy()
    bit.view(np.int32)[0, 2, 3, 3] ^= 1
    changed = names_of(prompt(tokens, [layout()] * 2), [bit, other])
    assert changed.pictures[0] != base.pictures[0]
    assert changed.pictures[1] == base.pictures[1]
    assert not {*changed.beginnings} & {*base.beginnings}


@pytest.mark.parametrize(
    "fact", [{"size": (4, 5)}, {"tiles": (2, 8)}, {"grid": (1, 1)}, {"scaled": (3, 4)}, {"count": 2}]
)
def test_names_tell_layouts_apart(rng, fact):
    pixels, tokens = rng.normal(size=(1, 3, 4, 4)).astype(np.float32), [1, 9, 9, 9, 5]
    one, other = (names_of(prompt(tokens, [layout(**what)]), [pixels]) for what in ({}, fact))
    assert one.pictures != other.pictures


def test_names_tell_owners_apart(rng):
    pixels, asked = rng.normal(size=(1, 3, 4, 4)).astype(np.float32), prompt([1, 9, 9, 9, 5], [layout()])
    found = [names_of(asked, [pixels], owner) for owner in ("", "one", "two", "one")]
    assert found[1] == found[3]
    assert len({one.pictures for one in found}) == len({one.beginnings for one in found}) == 3
