"""Videos: every kind of source, which frames are taken of it, and what is refused in one line."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from vlkv.errors import ImageError
from vlkv.inputs.image import open_image
from vlkv.inputs.layouts import lay_out_video, pack
from vlkv.inputs.pictures import Limits, read_visuals
from vlkv.inputs.video import Video, sampled, videos_of
from vlkv.storage.image_facts import ImageFacts, VideoFacts, video_problem

FRAME = ImageFacts(
    token_id=9, token="<video>", tile_features=10, height=6, width=6, resize="exact", resize_height=6, resize_width=6,
    crop=False, pad_to_square=False, resample=3, rescale=1 / 255, normalize=False, mean=(0, 0, 0), std=(1, 1, 1),
)  # fmt: skip
FACTS = VideoFacts(frame=FRAME, grid=(3, 3), newline=9)
LIMIT = 10**6


def clip(rng, count=5, height=12, width=20) -> np.ndarray:
    return rng.integers(0, 256, (count, height, width, 3), np.uint8)


def saved(frames: np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:], **options)
    return stream.getvalue()


def decoded(video: Video, chosen: list[int]) -> list[np.ndarray]:
    return [np.asarray(frame) for frame in video.frames.images(chosen, LIMIT)]


@pytest.mark.parametrize(
    "kind", ["array", "bytes", "file", "fortran", "version 2", "list", "arrays", "folder"]
)
def test_frames_of_arrays_and_lists_are_exact(kind, rng, tmp_path):
    frames = clip(rng)
    stream = io.BytesIO()
    if kind == "version 2":
        np.lib.format.write_array(stream, frames, version=(2, 0))
    else:
        np.save(stream, np.asfortranarray(frames) if kind == "fortran" else frames)
    (tmp_path / "clip.npy").write_bytes(stream.getvalue())
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number:02}.png")
    source = {
        "array": frames,
        "file": tmp_path / "clip.npy",
        "list": [Image.fromarray(frame) for frame in frames],
        "arrays": list(frames),
        "folder": str(tmp_path / "frames"),
    }.get(kind, stream.getvalue())
    (video,) = videos_of([source])
    assert video.frames.count == 5
    np.testing.assert_array_equal(decoded(video, [0, 3, 4]), frames[[0, 3, 4]])
    # a second look gets the same
    np.testing.assert_array_equal(decoded(video, [1]), frames[[1]])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("place", ["bytes", "file"])
def test_animations(kind, place, rng, tmp_path):
    frames = clip(rng)
    data = saved(frames, kind, **({"lossless": True} if kind == "WEBP" else {}), duration=40)
    (tmp_path / "clip").write_bytes(data)
    video = Video(data if place == "bytes" else tmp_path / "clip")
    assert video.frames.count == 5
    assert video.frames.pixels([0, 3], LIMIT) == 4 * 12 * 20
    got = decoded(video, [0, 2, 4])
    if kind != "GIF":
        np.testing.assert_array_equal(got, frames[[0, 2, 4]])
    with Image.open(io.BytesIO(data)) as image:
        for place_of, mine in zip([0, 2, 4], got, strict=True):
            image.seek(place_of)
            np.testing.assert_array_equal(mine, np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(got[0], np.asarray(open_image(data)))


def test_a_still_picture_is_a_video_of_one_frame(rng):
    frames = clip(rng, 1)
    video = Video(saved(frames, "PNG"))
    assert video.frames.count == 1
    np.testing.assert_array_equal(decoded(video, [0]), frames)


def written_video(frames: np.ndarray, path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10, options={})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.mark.parametrize("place", ["bytes", "file"])
def test_video_files(place, rng, tmp_path):
    frames = clip(rng, 7, 32, 48)
    written_video(frames, tmp_path / "clip.mkv")
    video = Video((tmp_path / "clip.mkv").read_bytes() if place == "bytes" else tmp_path / "clip.mkv")
    assert video.frames.count == 7 and video.frames.rate == 10
    assert video.frames.pixels([0, 4], LIMIT) == 5 * 32 * 48
    np.testing.assert_array_equal(decoded(video, [0, 2, 5]), frames[[0, 2, 5]])
    rated = VideoFacts(frame=FRAME, grid=(3, 3), rate=4.0)
    assert video.chosen(rated) == [0, 3]


def test_a_video_file_without_a_decoder(monkeypatch, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(64))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r"clip.mp4: no animation .*pip install 'vlkv\[video\]'"):
        _ = Video(tmp_path / "clip.mp4").frames


def test_a_damaged_video_file(rng, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(64))
    with pytest.raises(ImageError, match=r"clip.mp4: (not a video|holds no video|damaged)"):
        _ = Video(tmp_path / "clip.mp4").frames
    frames = clip(rng, 9, 32, 48)
    written_video(frames, tmp_path / "clip.mkv")
    data = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "half.mkv").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"half.mkv: (ends before|damaged)"):
        video = Video(tmp_path / "half.mkv")
        decoded(video, list(range(9)))


@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 100, 1001])
def test_sampling_is_that_of_transformers(total):
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    for count in {1, 2, 3, 7, 8, total} & set(range(1, total + 1)):
        want = default_sample_indices_fn(VideoMetadata(total_num_frames=total), num_frames=count)
        assert sampled(total, count) == want.tolist()
        taken = VideoFacts(frame=FRAME, grid=(3, 3), sampled=count)
        video = Video(np.zeros((total, 2, 2, 3), np.uint8))
        assert video.chosen(taken) == want.tolist()
        assert video.chosen(FACTS, count) == want.tolist()
    assert Video(np.zeros((total, 2, 2, 3), np.uint8)).chosen(FACTS) == list(range(total))


def test_which_frames_are_taken():
    four = [np.zeros((2, 2, 3), np.uint8)] * 4
    taken = VideoFacts(frame=FRAME, grid=(3, 3), sampled=2)
    # a list's frames were chosen already, as in transformers; only a caller's own number takes fewer
    assert Video(four).chosen(taken) == [0, 1, 2, 3]
    assert Video(four).chosen(taken, 2) == [0, 2]
    assert Video(four).chosen(taken, 9) == [0, 1, 2, 3]
    with pytest.raises(ImageError, match="4 frames, this checkpoint takes 5"):
        Video(np.stack(four)).chosen(VideoFacts(frame=FRAME, grid=(3, 3), sampled=5))
    with pytest.raises(ImageError, match=r"takes 2 frames a second, and the file's rate is unknown"):
        Video(np.stack(four)).chosen(VideoFacts(frame=FRAME, grid=(3, 3), rate=2.0))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.zeros((2, 4, 4), np.uint8), r"an array \[2, 4, 4\] of uint8; frames are"),
        (np.zeros((2, 4, 4, 3), np.float32), "of float32; frames are"),
        (np.zeros((2, 4, 4, 4), np.uint8), "frames are"),
        (np.zeros((0, 4, 4, 3), np.uint8), "0 frames; 1 to"),
        ([], "0 frames; 1 to"),
        (Image.new("RGB", (2, 2)), "a picture is no video"),
        (5, "a path, bytes or a Pillow image is wanted, not int"),
        ("/nowhere/clip.gif", "clip.gif: no such file"),
        (b"\x93NUMPY", "damaged or truncated array"),
        (b"\x93NUMPY\x09\x00" + bytes(40), "damaged or truncated array"),
    ],
)
def test_what_is_no_video(source, said):
    with pytest.raises(ImageError, match=said) as caught:
        _ = Video(source).frames
    assert "\n" not in str(caught.value)


def test_arrays_of_objects_and_truncated_ones(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "clip.npy", np.zeros((4, 8, 8, 3), np.uint8))
    (tmp_path / "half.npy").write_bytes((tmp_path / "clip.npy").read_bytes()[:-100])
    for name in ("objects.npy", "half.npy"):
        for source in (tmp_path / name, (tmp_path / name).read_bytes()):
            with pytest.raises(ImageError, match="damaged or truncated array"):
                _ = Video(source).frames


def test_a_damaged_animation(rng):
    data = saved(clip(rng), "WEBP", lossless=True)
    with pytest.raises(ImageError, match="video: "):
        decoded(Video(data[: len(data) // 2]), [0, 4])


def test_what_is_given_as_videos():
    assert videos_of(None) == () and videos_of([]) == ()
    assert len(videos_of("a.gif")) == 1 and len(videos_of(np.zeros((1, 2, 2, 3), np.uint8))) == 1
    assert len(videos_of(["a.gif", ["b.png", "c.png"]])) == 2
    (same,) = videos_of(videos_of(b"x"))
    assert isinstance(same, Video)
    with pytest.raises(ImageError, match="videos is a int"):
        videos_of(3)


class Manifest:
    """The two fields that reading pictures looks at."""

    image = FRAME
    video = FACTS


def test_limits_are_told_before_anything_is_decoded(monkeypatch):
    video = Video(np.zeros((6, 10, 10, 3), np.uint8))
    layouts = lay_out_video(6, FACTS)

    def read(limits):
        return read_visuals([], [(video, list(range(6)))], layouts, Manifest, limits)

    assert [pixels.shape for pixels in read(Limits())] == [(1, 3, 6, 6)] * 6
    monkeypatch.setattr(type(video.frames), "images", None)
    with pytest.raises(ImageError, match=r"10 x 10 picture has 0.0001 megapixels, the limit is 9.9e-05"):
        read(Limits(picture=99))
    with pytest.raises(ImageError, match=r"0.0006 megapixels up to video 1 of 1, the limit is 0.000599"):
        read(Limits(request=599))


def test_frames_stand_in_the_order_of_their_layouts(rng):
    videos = [Video(clip(rng, count)) for count in (2, 3)]
    layouts = [layout for count in (2, 3) for layout in lay_out_video(count, FACTS)]
    clips = [(video, list(range(video.frames.count))) for video in videos]
    got = read_visuals([], clips, layouts, Manifest, Limits())
    alone = [read_visuals([], [one], lay_out_video(len(one[1]), FACTS), Manifest, Limits()) for one in clips]
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate([*alone[0], *alone[1]]))


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (4, 6), (5, 2), (27, 27)])
def test_scaled_frames_are_those_of_torch(grid, rng):
    import torch

    rows = grid[0] * grid[1]
    small = tuple(-(-side // 2) for side in grid)
    frame = ImageFacts(
        **{name: getattr(FRAME, name) for name in FRAME.__struct_fields__} | {"tile_features": rows + 1}
    )
    facts = VideoFacts(frame=frame, grid=grid, scaled=small, newline=rows)
    features = rng.standard_normal((1, rows + 1, 8)).astype(np.float32)
    *_, last = lay_out_video(3, facts)
    assert [len(layout.token_ids) for layout in lay_out_video(3, facts)] == [small[0] * small[1]] * 2 + [
        small[0] * small[1] + 1
    ]
    grid_of = torch.from_numpy(features[:, :rows].reshape(1, *grid, 8)).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(grid_of, size=small, mode="bilinear").permute(0, 2, 3, 1)
    got = pack(features, last)
    # a place in the grid, and with it the share of a neighbour, is rounded to its size times 2^-24 on both sides
    rounding = 2 * max(grid) * 2.0**-23 * 2 * np.abs(features).max()
    np.testing.assert_allclose(got[:-1], want.reshape(-1, 8).numpy(), rtol=0, atol=rounding)
    np.testing.assert_array_equal(got[-1], features[0, rows])


def test_a_class_token_comes_before_the_grid():
    facts = VideoFacts(frame=FRAME, grid=(3, 3), prefix=1)
    (layout,) = lay_out_video(1, facts)
    assert layout.sources[:, 0].tolist() == list(range(10))
    assert layout.views[0].tokens.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_rows_that_are_not_there():
    assert video_problem(FACTS) is None
    for facts in (
        VideoFacts(frame=FRAME, grid=(3, 3), newline=10),
        VideoFacts(frame=FRAME, grid=(3, 4)),
        VideoFacts(frame=FRAME, grid=(3, 3), begin=1, prefix=1),
    ):
        assert "is beyond the 10 features" in (video_problem(facts) or "")
