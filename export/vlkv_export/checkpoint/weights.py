"""Finds and checks every tensor that the model needs in a folder's weight files, one or sharded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import Coded, Stored, Tensor
from vlkv_export.checkpoint.fields import read_object, show
from vlkv_export.checkpoint.layout import EMBEDDING, HEAD, Shape
from vlkv_export.checkpoint.names import Prefixes, canonical
from vlkv_export.checkpoint.quantisation import PARTS, Scheme
from vlkv_export.checkpoint.safetensors import DTYPES, Entry, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Found = dict[str, tuple[str, str, Entry]]


def find(folder: Path, prefixes: Prefixes) -> Found:
    """Map the canonical name of every tensor of the model to (name in the file, file name, header entry).

    `model.safetensors` takes precedence over `model.safetensors.index.json`, as in transformers.
    Raises `CheckpointError`.
    """
    if (folder / SINGLE).exists():
        placed = [(name, SINGLE, entry) for name, entry in read_header(folder / SINGLE).items()]
    elif (folder / INDEX).exists():
        placed = _sharded(folder)
    elif variants := sorted(folder.glob("model.*.safetensors")):
        raise CheckpointError(
            f"{folder} holds {variants[0].name} but no {SINGLE}; rename it, or save the variant with "
            "save_pretrained(...) without variant"
        )
    elif any(folder.glob("*.gguf")):
        raise CheckpointError(
            f"{folder} holds GGUF files; give the Hugging Face checkpoint they were made from"
        )
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise CheckpointError(
            f"{folder} holds PyTorch files but no {SINGLE}; write it anew with `python examples/to_safetensors.py "
            "FOLDER` of vlkv's repository"
        )
    else:
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}")
    found: Found = {}
    for name, file, entry in placed:
        place = canonical(name, prefixes)
        if place is None:
            continue
        if place in found:
            raise CheckpointError(
                f"{folder}: {show(name)} and {show(found[place][0])} are the same tensor twice"
            )
        found[place] = (name, file, entry)
    return found


def select(
    folder: Path,
    found: Found,
    layout: Iterable[tuple[str, Shape]],
    tied: bool,
    scheme: Scheme | None = None,
) -> tuple[dict[str, Tensor], dict[str, Coded]]:
    """Look up the tensors of `layout` and check their shapes and dtypes; the three dtypes may be mixed.

    With the `scheme` of a quantised checkpoint, the second result holds the matrices that are stored as codes.
    With `tied`, the embedding also serves as the head, or the head as the embedding, if the files have only one of
    them. (If they have both, each is used: transformers does not tie two that differ either.)
    Raises `CheckpointError`.
    """
    if tied:
        for absent, present in ((HEAD, EMBEDDING), (EMBEDDING, HEAD)):
            if absent not in found and present in found:
                found = {**found, absent: found[present]}
    tensors: dict[str, Tensor] = {}
    coded: dict[str, Coded] = {}
    missing: list[str] = []
    for name, shape in layout:
        parts = {} if scheme is None or len(shape) != 2 or name == EMBEDDING else _parts(name, found, scheme)
        if scheme is not None and parts:
            coded[name] = _coded(folder, name, parts, (shape[0], shape[1]), scheme)
        elif name in found:
            tensors[name] = _tensor(folder, *found[name], shape)
        else:
            missing.append(name)
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(missing) + len(tensors)} tensors are missing "
            f"from the weights; the first is {missing[0]}"
        )
    return tensors, coded


def _parts(name: str, found: Found, scheme: Scheme) -> dict[str, tuple[str, str, Entry]]:
    """The parts of a matrix that is stored in codes, by name; none of one that is not."""
    stem = name.removesuffix("weight")
    first = f"{stem}{PARTS[scheme.method][0]}"
    if stem == name or first not in found or found[first][2].dtype in DTYPES:
        return {}
    names = (*PARTS[scheme.method], *(("g_idx",) if scheme.method == "gptq" else ()))
    return {part: found[stem + part] for part in names if stem + part in found}


def _coded(
    folder: Path,
    name: str,
    parts: dict[str, tuple[str, str, Entry]],
    shape: tuple[int, int],
    scheme: Scheme,
) -> Coded:
    outputs, inputs = shape
    groups = 1 if scheme.group == 0 else -(-inputs // scheme.group)
    packed = (inputs // 8, outputs) if scheme.method == "gptq" else (inputs, outputs // 8)
    floats = tuple(DTYPES)
    wanted: dict[str, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = {
        "qweight": (("I32",), (packed,)),
        "qzeros": (("I32",), ((groups, outputs // 8),)),
        "scales": (floats, ((groups, outputs),)),
        "g_idx": (("I32",), ((inputs,),)),
        "weight": (("I8",), (shape,)),
        "weight_scale": (floats, ((outputs, groups), (outputs,), (1,), ())),
    }
    for part in PARTS[scheme.method]:
        if part not in parts:
            raise CheckpointError(f"{folder}: {name} is stored in codes, and its {part} is missing")
    if scheme.method != "int8" and (inputs % 8 or outputs % 8):
        raise CheckpointError(f"{folder}: {name} {list(shape)} is no matrix of whole words of 8 codes")
    for part, (stored, file, entry) in parts.items():
        dtypes, shapes = wanted[part]
        if entry.dtype not in dtypes or entry.shape not in shapes:
            raise CheckpointError(
                f"{folder / file}: tensor {show(stored)} is {entry.dtype} {show(list(entry.shape))}; config.json makes "
                f"it {' or '.join(dtypes)} {show(list(shapes[0]))}"
            )
    return Coded(
        name,
        shape,
        scheme,
        {part: Stored(file, e.dtype, e.shape, e.offset, e.length) for part, (_, file, e) in parts.items()},
    )


def _tensor(folder: Path, name: str, file: str, entry: Entry, shape: Shape) -> Tensor:
    where = f"{folder / file}: tensor {show(name)}"
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise CheckpointError(f"{where} has dtype {entry.dtype}; supported: {', '.join(DTYPES)}")
    if entry.shape != shape:
        raise CheckpointError(
            f"{where} has shape {show(list(entry.shape))}; config.json makes it {show(list(shape))}"
        )
    return Tensor(name, file, dtype, entry.shape, entry.offset, entry.length)


def _sharded(folder: Path) -> list[tuple[str, str, Entry]]:
    index = folder / INDEX
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map is {show(weight_map)}; it must name a file for each tensor"
        )
    headers: dict[str, dict[str, Entry]] = {}
    placed = []
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _plain(file):
            raise CheckpointError(
                f"{index}: {show(name)} is in {show(file)}; it must be a file of the folder itself"
            )
        if file not in headers:
            if not (folder / file).is_file():
                raise CheckpointError(f"{index}: {show(name)} is in {show(file)}, which does not exist")
            headers[file] = read_header(folder / file)
        if name not in headers[file]:
            raise CheckpointError(f"{index}: {show(name)} should be in {show(file)}, which does not hold it")
        placed.append((name, file, headers[file][name]))
    return placed


def _plain(file: str) -> bool:
    clean = file.isprintable() and 0 < len(file.encode("utf-8", "replace")) <= 255
    return clean and file not in (".", "..") and not set("/\\:") & set(file)
