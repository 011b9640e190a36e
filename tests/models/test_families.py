"""Compares every family with transformers: pixels, features, logits, greedy tokens, chunks, batches, scheduler."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from PIL import Image

from models import families
from vlkv import Engine, Question
from vlkv.cli.main import main
from vlkv.errors import ImageError, PromptError
from vlkv.generation.prefill import embed
from vlkv.generation.sequence import prepare
from vlkv.inputs.messages import VIDEO, Message
from vlkv.inputs.preprocess import pixel_values
from vlkv_export.directory import export_checkpoint
from vlkv_export.engine import build_engine

STEPS = 32
ALL = list(families.FAMILIES)
PROMPTS = {
    "none": ("what is the total of form w0", []),
    "wide": ("<image> what is the total", ["wide"]),
    "tall": ("what <image> is the total of w1", ["tall"]),
    "dot": ("<image> name of form", ["dot"]),
    "large": ("<image> date of form", ["large"]),
    "exact": ("<image> city", ["exact"]),
    "sliver": ("<image> city of w2", ["sliver"]),
    "two": ("w0 <image> and <image> total", ["odd", "wide"]),
    "three": ("<image> w3 <image> w4 w5 <image> name of", ["exact", "dot", "tall"]),
}
VIDEOS = {
    "frame": ("<video> what is the total", [], [["wide"]]),
    "many": (
        "what <video> is the total of w1",
        [],
        [["wide", "tall", "dot", "odd", "large", "exact", "sliver"]],
    ),
    "two": ("<video> w0 <video> name of form", [], [["odd", "wide", "odd"], ["tall", "large", "exact"]]),
    "both": ("w0 <image> and <video> total", ["odd"], [["wide", "wide"]]),
    "before": ("<video> <image> city <image> <video> of", ["tall", "wide"], [["exact"], ["large"]]),
}
every = pytest.mark.parametrize("name", ALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns checkpoint, engine and transformers' model by name. Each is made once."""
    base = tmp_path_factory.mktemp("families")

    @cache
    def make(name):
        folder = families.build(name, base / name)
        export_checkpoint(folder, base / f"{name}.graphs")
        build_engine(base / f"{name}.graphs", base / f"{name}.engine")
        engine = Engine.load(base / f"{name}.engine", threads=1, verify=False)
        return engine, families.Reference(name, folder)

    return make


def skip_unlaid(name, prompt):
    """Skips pictures so thin that Pixtral makes no patches of them. transformers fails there too."""
    if prompt == "sliver" and "pixtral" in name:
        pytest.skip("no patches")


def shown(prompt):
    """A prompt's text with the video token, its pictures and its videos."""
    text, pictures, videos = VIDEOS[prompt]
    frames = [[families.picture(name) for name in names] for names in videos]
    return text.replace("<video>", families.VIDEO), [families.picture(name) for name in pictures], frames


def asked(prompt, **fields):
    text, names = PROMPTS[prompt]
    return Question(text, [families.picture(name) for name in names], raw=True, policy="full", **fields)


@every
@pytest.mark.parametrize("prompt", [name for name in PROMPTS if name != "none"])
def test_pixels_and_features(name, prompt, made, tolerance):
    skip_unlaid(name, prompt)
    engine, reference = made(name)
    text, names = PROMPTS[prompt]
    pictures = [families.picture(each) for each in names]
    theirs = reference.pictures(pictures)
    laid = engine.prompt(asked(prompt))
    ids = reference.inputs(text, pictures)["input_ids"][0]
    assert laid.token_ids.tolist() == ids.tolist()
    facts = engine.manifest.image
    step = facts.rescale / min(facts.std)
    for number, (picture, layout) in enumerate(zip(pictures, laid.pictures, strict=True)):
        mine = pixel_values(picture, layout, facts)
        want = theirs["pixel_values"][number].numpy()
        want = want if want.ndim == 4 else want[np.newaxis]
        # in a batch, pictures of fewer tiles and smaller Pixtral pictures are padded with zeros
        assert not want[len(mine) :].any()
        assert not want[..., mine.shape[2] :, :].any() and not want[..., mine.shape[3] :].any()
        want = want[:, :, : mine.shape[2], : mine.shape[3]]
        # one rounding of an 8-bit level
        np.testing.assert_allclose(mine, want[: len(mine)], rtol=0, atol=step * 1e-4)
    assert len(laid.image_positions) == sum(map(len, reference.features(theirs)))


@every
@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_and_greedy_tokens(name, prompt, made, prefilled, tolerance):
    skip_unlaid(name, prompt)
    engine, reference = made(name)
    question = asked(prompt, max_new_tokens=STEPS)
    text, names = PROMPTS[prompt]
    inputs = reference.inputs(text, [families.picture(each) for each in names])
    want = reference.generate(inputs, STEPS)
    logits = reference.forced(inputs, want)
    mine = prefilled(engine, question.prompt, question.images, raw=True, policy="full", max_new_tokens=STEPS)
    got = mine.forced(want)
    # the limit is far below the difference between two tokens' logits
    assert tolerance(logits) < 1e-4 * np.ptp(logits)
    np.testing.assert_allclose(got, logits, rtol=0, atol=tolerance(logits))
    assert engine.generate_batch([question])[0].token_ids == want


@every
def test_batch_chunks_and_scheduler(name, made, prefilled, tolerance):
    engine, _ = made(name)
    questions = [asked(prompt, max_new_tokens=12) for prompt in ("three", "none", "wide", "two")]
    together = [result.token_ids for result in engine.generate_batch(questions)]
    for question, tokens in zip(questions, together, strict=True):
        given = {"images": question.images, "raw": True, "policy": "full", "max_new_tokens": 12}
        whole = prefilled(engine, question.prompt, **given)
        part = prefilled(engine, question.prompt, chunk=13, **given)
        np.testing.assert_allclose(part.logits, whole.logits, rtol=0, atol=tolerance(whole.logits))
        assert engine.generate_batch([question])[0].token_ids == tokens
    with engine.scheduler(slots=2) as scheduler:
        tickets = [scheduler.submit(question) for question in questions]
        for ticket, tokens in zip(tickets, together, strict=True):
            assert ticket.wait().token_ids == tokens


@pytest.mark.parametrize("name", families.WITH_VIDEOS)
@pytest.mark.parametrize("prompt", VIDEOS)
def test_videos(name, prompt, made, prefilled, tolerance):
    """Pixel values, token ids, features, logits and greedy tokens of videos."""
    engine, reference = made(name)
    text, pictures, videos = shown(prompt)
    inputs = reference.inputs(text, pictures, videos)
    question = Question(text, pictures, videos=videos, raw=True, policy="full", max_new_tokens=STEPS)
    laid = engine.prompt(question)
    assert laid.token_ids.tolist() == inputs["input_ids"][0].tolist()
    facts = engine.manifest.video.frame
    frames = [layout for layout in laid.pictures if layout.frame is not None]
    theirs = inputs["pixel_values_videos"].flatten(0, 1).numpy()
    every_frame = [frame for video in videos for frame in video]
    for want, frame, layout in zip(theirs, every_frame, frames, strict=True):
        mine = pixel_values(frame, layout, facts)
        np.testing.assert_allclose(mine[0], want, rtol=0, atol=facts.rescale / min(facts.std) * 1e-4)
    want = reference.generate(inputs, STEPS)
    logits = reference.forced(inputs, want)
    given = {"raw": True, "policy": "full", "max_new_tokens": STEPS, "videos": videos}
    got = prefilled(engine, text, pictures, **given).forced(want)
    assert tolerance(logits) < 1e-4 * np.ptp(logits)
    np.testing.assert_allclose(got, logits, rtol=0, atol=tolerance(logits))
    assert engine.generate_batch([question])[0].token_ids == want


@pytest.mark.parametrize("name", families.POOLS)
def test_pooled_features(name, tmp_path, tolerance):
    """The features that a text model gets of frames that are pooled in another way."""
    folder = families.build(name, tmp_path / "checkpoint")
    export_checkpoint(folder, tmp_path / "graphs")
    build_engine(tmp_path / "graphs", tmp_path / "engine")
    engine, reference = Engine.load(tmp_path / "engine", threads=1), families.Reference(name, folder)
    frames = [families.picture("wide"), families.picture("odd")]
    (want,) = reference.video_features(reference.clips([frames]))
    sequence = prepare(engine.model, Question(families.VIDEO, videos=[frames], raw=True))
    got = embed(engine.model, sequence.prompt, sequence.images).embeds[sequence.prompt.image_positions]
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(want))


@pytest.mark.parametrize("name", families.WITH_VIDEOS)
def test_every_way_to_give_a_video(name, made, tmp_path, capfd):
    """Python, messages, a chat, batches, chunks, the scheduler and the command line answer alike."""
    engine, _ = made(name)
    frames = np.stack(
        [np.asarray(families.picture("wide"))] * 3 + [np.asarray(families.picture("wide"))[::-1]]
    )
    np.save(tmp_path / "clip.npy", frames)
    settings = {"policy": "full", "max_new_tokens": 12}
    want = engine.generate("what is the total", videos=[frames], **settings)
    pictures = [Image.fromarray(frame) for frame in frames]
    chat = engine.chat("full", keep="reusable")
    assert chat.ask("what is the total", videos=[pictures], max_new_tokens=12).token_ids == want.token_ids
    later = chat.ask("what is the name", videos=[frames[:1]], max_new_tokens=12)
    assert later.image_tokens > want.image_tokens
    messages = (Message("user", (VIDEO, "what is the total")),)
    question = Question("", messages=messages, videos=tmp_path / "clip.npy", **settings)
    alone = Question("date of form", [families.picture("odd")], videos=[pictures[:1]], **settings)
    together = engine.generate_batch([question, alone])
    assert together[0].token_ids == want.token_ids
    with engine.scheduler(slots=2) as scheduler:
        tickets = [scheduler.submit(one) for one in (alone, question)]
        assert [ticket.wait().token_ids for ticket in tickets] == [
            result.token_ids for result in reversed(together)
        ]
    command = ["run", str(engine.directory), "--video", str(tmp_path / "clip.npy"), "--policy", "full"]
    command += ["--prompt", "what is the total", "--max-new-tokens", "12", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code in (0, None)
    assert json.loads(capfd.readouterr().out)["token_ids"] == want.token_ids
    with pytest.raises(SystemExit) as ended:
        main([*command, "--frames", "2"])
    fewer = json.loads(capfd.readouterr().out)
    two = engine.generate("what is the total", videos=[frames[[0, 2]]], **settings)
    assert fewer["token_ids"] == two.token_ids and fewer["prompt_tokens"] == two.prompt_tokens


def test_videos_that_are_refused(made):
    engine, _ = made("llava-siglip-qwen2")
    with pytest.raises(ImageError, match="this model takes no videos; give the frames as pictures"):
        engine.generate("what", videos=[[families.picture("dot")]])
    engine, _ = made("onevision")
    with pytest.raises(PromptError, match=r"prompt has 2 w20 for 1 given video"):
        engine.generate("w20 what w20", videos=[[families.picture("dot")]])
    with pytest.raises(PromptError, match=r"of them video; the model has 1024 positions"):
        engine.generate("what", videos=[np.zeros((300, 1, 1, 3), np.uint8)])
    with pytest.raises(ImageError, match="frames is 0"):
        Question("what", frames=0)


@pytest.mark.parametrize(
    "name",
    ["llava-clip-mistral-window", "next-siglip-qwen2-window", "onevision", "next-video", "video-llava"],
)
@pytest.mark.parametrize("policy", ["full", "vl-cache", "snapkv", "elastic"])
def test_a_second_question_has_the_same_bits(name, policy, made, rng):
    """Reuse of beginnings with sliding windows, grids of tiles, several pictures and videos."""
    engine, _ = made(name)
    fields = {"policy": policy, "budget": None if policy == "full" else 0.3, "raw": True, "max_new_tokens": 5}
    fields |= {"logprobs": 2, "scores": True}
    shows = engine.manifest.video is not None
    beginning = " ".join(["what is the total of this form"] * 45)
    text, pictures, videos = shown("both") if shows else ("<image> <image>", ["odd", "tall"], [])
    if not shows:
        pictures = [families.picture(one) for one in pictures]
    asked = [
        Question(
            f"{beginning} {text} {' '.join(rng.choice(['w1', 'w2', 'name'], count))}",
            pictures,
            videos=videos,
            **fields,
        )
        for count in (40, 3, 40)
    ]
    found = []
    for reuse in (0, 64 << 20):
        with engine.scheduler(reuse=reuse) as scheduler:
            found.append([scheduler.submit(question).wait(120) for question in asked])
    for one, other in zip(*found, strict=True):
        assert (one.token_ids, one.logprobs, one.sparsity) == (
            other.token_ids,
            other.logprobs,
            other.sparsity,
        )
        for ours, theirs in zip(one.scores, other.scores, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for ours, theirs in zip(one.positions or [], other.positions or [], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert [one.cached_tokens > 0 for one in found[1]] == [False, *[policy != "elastic"] * 2]
