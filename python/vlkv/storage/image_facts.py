"""Records of the manifest that define how pictures and videos become tokens; `vlkv.inputs.layouts` applies them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Size = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Id = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Side = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record whose unknown fields are errors."""


class Fixed(Struct, frozen=True, tag="fixed"):
    """Every picture is one tile, and each of its rows of features is a token."""


class AnyRes(Struct, frozen=True, tag="anyres"):
    """A picture is one overview tile and a grid of tiles into which the picture is scaled; the best grid is chosen.

    Used by LLaVA-NeXT, and with `shrink_to` by LLaVA-OneVision. Tokens of the grid's padding are dropped.

    Fields:
        pinpoints: height and width of each possible grid, in pixels, multiples of the tile's; the first of equals wins.
        rows, columns: the tokens of a tile; it has `rows * columns` features, row-major.
        shrink_to: a grid with more tokens than 1.21 times those of so many tiles is scaled down to about that many
            tiles' tokens (bilinear).
        several: the treatment of each picture in a prompt with several: `tiles`, as a single picture; `whole`, one
            tile, padded to a square.

    The last row of a tile's features is the newline vector: it ends each row of the grid's tokens, or a picture
    that is one tile. Rows between the tokens and the newline are of no use for pictures.
    """

    pinpoints: Annotated[tuple[tuple[Side, Side], ...], msgspec.Meta(min_length=1, max_length=1024)]
    rows: Side
    columns: Side
    shrink_to: Side | None = None
    several: Literal["tiles", "whole"] = "tiles"


class Rows(Struct, frozen=True, tag="rows"):
    """A picture is one tile of its own shape with one token per patch (Pixtral). Text tokens end its rows and its end.

    Fields:
        patch: the side of a token's patch, in pixels.
        longest: the height and width that a picture is scaled down to fit, before it is cut into whole patches.
        break_id, end_id: the token after each row, and the token after the last row.
    """

    patch: Side
    longest: tuple[Side, Side]
    break_id: Id
    end_id: Id


class NoPictures(Struct, frozen=True, tag="none"):
    """The model takes text alone; the other fields of `ImageFacts` mean nothing. See `text_alone`."""


Rule = Fixed | AnyRes | Rows | NoPictures


class ImageFacts(Struct, frozen=True):
    """How a picture becomes tokens. Sizes are in pixels; means and deviations apply per channel after rescaling.

    `height` and `width` are a tile's, with the rule `rows` the largest possible. `tile_features` is the number of rows
    of features that the vision graph returns for such a tile. The other fields define the preparation of a picture of
    one tile: with `resize="shortest_edge"` the shorter side becomes `resize_height`; with `crop` the middle
    `height x width` is cut out; `pad_to_square` comes before both. `rescale` is 1 if the processor does not rescale.
    `spliced` says that the tokenizer does not know `token`: a prompt is split at it, the pieces are tokenised
    separately, and `token_id` only fills the places of the pictures.
    """

    token_id: Id
    token: str
    tile_features: Size
    height: Size
    width: Size
    resize: Literal["none", "shortest_edge", "exact"]
    resize_height: Id
    resize_width: Id
    crop: bool
    pad_to_square: bool
    resample: Annotated[int, msgspec.Meta(ge=0, le=5)]
    rescale: float
    normalize: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rule: Rule = Fixed()
    spliced: bool = False


def text_alone(vocab: int) -> ImageFacts:
    """The facts of a model of text alone: an image token that no tokenizer makes and no text holds."""
    return ImageFacts(
        token_id=vocab,
        token="\ufffe",
        tile_features=1,
        height=1,
        width=1,
        resize="none",
        resize_height=0,
        resize_width=0,
        crop=False,
        pad_to_square=False,
        resample=0,
        rescale=1.0,
        normalize=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        rule=NoPictures(),
    )


def takes_pictures(image: ImageFacts) -> bool:
    """Tell whether the model has a vision tower."""
    return not isinstance(image.rule, NoPictures)


class VideoFacts(Struct, frozen=True):
    """How a video becomes tokens: each frame is one tile, and some of its features are the frame's tokens.

    Fields:
        frame: how a frame is prepared, with the rule `fixed`; its `token` stands for a whole video.
        graph: which graph gives a frame's `frame.tile_features` rows of features.
        begin: the row with which a frame's tokens begin.
        prefix: tokens before those of the grid (a class token).
        grid: rows and columns of the features behind them, row-major.
        scaled: rows and columns that the grid is scaled to (bilinear); None leaves it as it is.
        newline: the row that ends a video, behind its last frame's tokens; None for no such token.
        sampled: how many frames are taken of a file, evenly; None for all.
        rate: how many a second of a file, where `sampled` does not say; None for all.
    """

    frame: ImageFacts
    grid: tuple[Side, Side]
    graph: Literal["vision", "video"] = "vision"
    begin: Id = 0
    prefix: Id = 0
    scaled: tuple[Side, Side] | None = None
    newline: Id | None = None
    sampled: Size | None = None
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None


def video_problem(video: VideoFacts) -> str | None:
    """What a schema can't say of relations between a video's fields; None where all is right."""
    wrong = problem(video.frame)
    if wrong is not None:
        return f"frame: {wrong}"
    if not isinstance(video.frame.rule, Fixed):
        return "frame: its rule is not fixed"
    last = max(video.begin + video.prefix + video.grid[0] * video.grid[1] - 1, video.newline or 0)
    if last >= video.frame.tile_features:
        return f"row {last} is beyond the {video.frame.tile_features} features of a frame"
    return None


def features_of(image: ImageFacts, height: int, width: int) -> int:
    """The rows of features that the vision graph returns for a tile of that size in pixels."""
    if isinstance(image.rule, Rows):
        return (height // image.rule.patch) * (width // image.rule.patch)
    return image.tile_features


def problem(image: ImageFacts) -> str | None:
    """Checks relations between fields that a schema can't express; returns the problem, or None."""
    if image.normalize and not all(image.std):
        return f"std {list(image.std)} holds a zero"
    if image.token == "":
        return "token is empty"
    if image.resize != "none" and image.resize_height == 0:
        return "resize_height is 0"
    if image.resize == "exact" and image.resize_width == 0:
        return "resize_width is 0"
    if isinstance(image.rule, AnyRes):
        return _grid_problem(image, image.rule)
    if isinstance(image.rule, Rows):
        patch, longest = image.rule.patch, image.rule.longest
        if (image.height, image.width) != tuple(-(-side // patch) * patch for side in longest):
            return (
                f"{image.height} x {image.width} pixels are not {list(longest)} in whole patches of {patch}"
            )
    return None


def _grid_problem(image: ImageFacts, rule: AnyRes) -> str | None:
    for height, width in rule.pinpoints:
        if height % image.height or width % image.width:
            return f"pinpoint [{height}, {width}] is no multiple of the tile [{image.height}, {image.width}]"
    if image.tile_features < rule.rows * rule.columns + 1:
        wanted = f"{rule.rows} x {rule.columns} tokens and a newline"
        return f"tile_features {image.tile_features} are fewer than {wanted}"
    return None
