"""Reads videos: lists of pictures, animations, arrays of frames and video files; frames are counted before decoding."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlkv.errors import ImageError
from vlkv.inputs.image import (
    animation_frames,
    check_pixels,
    decoded_pixels,
    open_animation,
    open_image,
    source_stream,
)
from vlkv.storage.files import reason, show
from vlkv.storage.image_facts import VideoFacts

NUMPY = b"\x93NUMPY"
MAX_FRAMES = 1 << 20
"""Above so many frames a source is not counted on."""


class Frames(ABC):
    """What a source of frames offers.

    Attributes:
        count: of its frames.
        rate: frames a second; None where that is unknown.
        given: whether its frames were chosen one by one, so that none is left out unasked.
    """

    count: int
    rate: float | None = None
    given: bool = False

    @abstractmethod
    def pixels(self, chosen: Sequence[int], limit: int) -> int:
        """How many pixels are decoded to get the chosen frames, known before any is. Raises `ImageError`."""

    @abstractmethod
    def images(self, chosen: Sequence[int], limit: int) -> Iterator[Image.Image]:
        """The chosen frames, ascending, RGB, one at a time. Raises `ImageError`."""


class Video:
    """A video that was given, not opened before it is counted.

    Args:
        source: a list of pictures; a path or a file's content (GIF, WebP, APNG, `.npy`, or what PyAV decodes); or an
            array uint8 `[frames, height, width, 3]`.

    A folder is the list of the files in it, by name.
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    @cached_property
    def frames(self) -> Frames:
        """The opened source. Raises `ImageError`."""
        return _open(self.source)

    def chosen(self, facts: VideoFacts, count: int | None = None) -> list[int]:
        """Which frames the model is shown.

        `count` of them, evenly, where it is given and there are more. Else those that the checkpoint's processor takes
        of a file; it takes all where it does not sample, and all of a list of pictures.

        Raises:
            ImageError: fewer frames than the processor takes, or a rate of frames that it needs and nobody knows.
        """
        total, name = self.frames.count, name_of(self.source)
        if count is not None:
            return sampled(total, min(count, total))
        wanted = None if self.frames.given else facts.sampled
        if wanted is None and facts.rate is not None and not self.frames.given:
            if self.frames.rate is None:
                raise ImageError(
                    f"{name}: this checkpoint takes {facts.rate:g} frames a second, and the file's rate is unknown; "
                    "say how many frames to take"
                )
            wanted = max(1, int(total / self.frames.rate * facts.rate))
        if wanted is not None and wanted > total:
            raise ImageError(
                f"{name}: {total} frames, this checkpoint takes {wanted}; say how many frames to take"
            )
        return sampled(total, total if wanted is None else wanted)


def sampled(total: int, count: int) -> list[int]:
    """`count` of `total` frames, evenly from the first on, as transformers' video processors choose them."""
    return [place * total // count for place in range(count)]


def videos_of(given: Any) -> tuple[Video, ...]:
    """What a caller gives as videos: a list of them, or one path, file or array alone. Raises `ImageError`."""
    if given is None:
        return ()
    if isinstance(given, Video | str | os.PathLike | bytes | bytearray | memoryview | np.ndarray):
        given = (given,)
    if not isinstance(given, Sequence):
        raise ImageError(
            f"videos is a {type(given).__name__}; a list of videos is wanted, each a path, bytes, an array "
            "[frames, height, width, 3] of uint8, or a list of pictures"
        )
    return tuple(one if isinstance(one, Video) else Video(one) for one in given)


def name_of(source: object) -> str:
    """A video's name for errors."""
    if isinstance(source, str | os.PathLike):
        return show(os.fspath(source))
    return "video"


def _open(source: Any) -> Frames:
    name = name_of(source)
    if isinstance(source, np.ndarray):
        return _Array(source, name)
    if isinstance(source, Image.Image):
        raise ImageError(f"{name}: a picture is no video; give a list of pictures: videos=[[picture]]")
    if isinstance(source, str | os.PathLike) and Path(os.fsdecode(source)).is_dir():
        source = sorted(path for path in Path(os.fsdecode(source)).iterdir() if path.is_file())
        return _Pictures(source, name)
    if isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray | memoryview):
        return _Pictures(source, name)
    stream = source_stream(source, name)
    if _begins(stream) == NUMPY:
        return _array_file(stream, name)
    found = open_animation(stream, name)
    return _Decoded(stream, name) if found is None else _Animation(stream, name, *found)


def _begins(stream: Path | io.BytesIO) -> bytes:
    if isinstance(stream, io.BytesIO):
        return stream.getvalue()[: len(NUMPY)]
    with stream.open("rb") as file:
        return file.read(len(NUMPY))


def _some(count: int, name: str) -> int:
    if not 0 < count <= MAX_FRAMES:
        raise ImageError(f"{name}: {count} frames; 1 to {MAX_FRAMES} are taken")
    return count


class _Pictures(Frames):
    """A list of pictures, of any sizes."""

    given = True

    def __init__(self, sources: Sequence[Any], name: str) -> None:
        self.count = _some(len(sources), name)
        self._sources, self._name = sources, name

    def pixels(self, chosen: Sequence[int], limit: int) -> int:
        return sum(decoded_pixels(self._picture(place), limit=limit) for place in chosen)

    def images(self, chosen: Sequence[int], limit: int) -> Iterator[Image.Image]:
        for place in chosen:
            yield open_image(self._picture(place), limit=limit)

    def _picture(self, place: int) -> Any:
        source = self._sources[place]
        if isinstance(source, np.ndarray):
            _Array(source[np.newaxis], f"{self._name}, frame {place + 1}")
            return Image.fromarray(source)
        return source


class _Array(Frames):
    """Frames in memory, or in a file that is mapped."""

    def __init__(self, frames: NDArray[Any], name: str) -> None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ImageError(
                f"{name}: an array {list(frames.shape)} of {frames.dtype}; "
                "frames are [frames, height, width, 3] of uint8"
            )
        self.count = _some(len(frames), name)
        self._frames, self._name = frames, name

    def pixels(self, chosen: Sequence[int], limit: int) -> int:
        height, width = (int(side) for side in self._frames.shape[1:3])
        check_pixels(width, height, self._name, limit)
        return len(chosen) * height * width

    def images(self, chosen: Sequence[int], limit: int) -> Iterator[Image.Image]:
        for place in chosen:
            yield Image.fromarray(np.ascontiguousarray(self._frames[place]))


def _array_file(stream: Path | io.BytesIO, name: str) -> _Array:
    try:
        if isinstance(stream, Path):
            return _Array(np.load(stream, mmap_mode="r", allow_pickle=False), name)
        return _Array(_view(stream), name)
    except ImageError:
        raise
    except (OSError, ValueError, TypeError, EOFError, SyntaxError, OverflowError, MemoryError) as error:
        raise ImageError(f"{name}: damaged or truncated array: {reason(error)}") from error


def _view(stream: io.BytesIO) -> NDArray[Any]:
    """The array of a file's bytes, which are not copied."""
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version[0] not in read:
        raise ValueError(f"version {version}")
    shape, fortran, dtype = read[version[0]](stream)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    found: NDArray[Any] = np.ndarray(
        shape, dtype, stream.getbuffer(), stream.tell(), order="F" if fortran else "C"
    )
    return found


class _Animation(Frames):
    """A GIF, WebP or APNG. Frames are made of those before them, so that all up to the last chosen one are decoded."""

    def __init__(self, stream: Path | io.BytesIO, name: str, count: int, size: tuple[int, int]) -> None:
        self.count = _some(count, name)
        self._stream, self._name, self._size = stream, name, size

    def pixels(self, chosen: Sequence[int], limit: int) -> int:
        check_pixels(*self._size, self._name, limit)
        return (max(chosen) + 1) * self._size[0] * self._size[1]

    def images(self, chosen: Sequence[int], limit: int) -> Iterator[Image.Image]:
        yield from animation_frames(self._stream, self._name, chosen, limit)


class _Decoded(Frames):
    """A video file, decoded by PyAV; its frames as they are stored, not turned."""

    def __init__(self, stream: Path | io.BytesIO, name: str) -> None:
        self._stream, self._name = stream, name
        with self._opened() as container:
            video = container.streams.video[0]
            count = video.frames or sum(1 for packet in container.demux(video) if packet.size)
            self.count = _some(count, name)
            self.rate = float(video.average_rate) if video.average_rate else None
            self._size: tuple[int, int] = (video.codec_context.width, video.codec_context.height)

    def pixels(self, chosen: Sequence[int], limit: int) -> int:
        check_pixels(*self._size, self._name, limit)
        return (max(chosen) + 1) * self._size[0] * self._size[1]

    def images(self, chosen: Sequence[int], limit: int) -> Iterator[Image.Image]:
        wanted, last = set(chosen), max(chosen)
        found = 0
        with self._opened() as container:
            for place, frame in enumerate(container.decode(video=0)):
                if place in wanted:
                    found += 1
                    check_pixels(frame.width, frame.height, self._name, limit)
                    yield Image.fromarray(frame.to_ndarray(format="rgb24"))
                if place >= last:
                    break
        if found < len(chosen):
            raise ImageError(f"{self._name}: ends before frame {last + 1}, its header says {self.count}")

    def _opened(self) -> Any:
        return _Container(self._stream, self._name)


class _Container:
    """An opened container of PyAV; whatever goes wrong with it is an `ImageError` of one line."""

    def __init__(self, stream: Path | io.BytesIO, name: str) -> None:
        self._name = name
        try:
            import av
        except ImportError:
            raise ImageError(
                f"{name}: no animation that Pillow reads (GIF, WebP, APNG) and no .npy; "
                "video files need PyAV: pip install 'vlkv[video]'"
            ) from None
        self._error: Any = av.FFmpegError
        try:
            if isinstance(stream, io.BytesIO):
                stream.seek(0)
            self._container = av.open(stream if isinstance(stream, io.BytesIO) else str(stream))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ImageError(f"{name}: not a video that can be read: {reason(error)}") from error
        if not self._container.streams.video:
            self._container.close()
            raise ImageError(f"{name}: holds no video")

    def __enter__(self) -> Any:
        return self._container

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> None:
        self._container.close()
        if isinstance(error, self._error):
            raise ImageError(f"{self._name}: damaged or truncated video: {reason(error)}") from error
