"""Folders that are no whole export of a decoder are refused in one line, with exit code 2, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from vlkv.cli.main import main


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def cut(name: str) -> Callable[[Path], None]:
    def half(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return half


def edited(change: Callable[[ir.Model], None]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        model = ir.load(folder / "model.onnx")
        change(model)
        ir.save(model, folder / "model.onnx")

    return save


def without_cache(model: ir.Model) -> None:
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.name = (value.name or "").replace("past_key_values", "states").replace("present", "made")


def encoder(model: ir.Model) -> None:
    """What is left is an encoder's graph: tokens to hidden states."""
    graph = model.graph
    lookup = next(node for node in graph if node.op_type == "Gather" and "embed_tokens" in (node.name or ""))
    rows = lookup.outputs[0]
    rows.name = "last_hidden_state"
    graph.outputs[:] = [rows]
    common.RemoveUnusedNodesPass()(model)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]


def mystery(model: ir.Model) -> None:
    node = next(node for node in model.graph if "LayerNorm" in node.op_type)
    node.op_type, node.domain, node.name = "MysteryNorm", "else.where", "layers.0/mystery"


CASES = {
    "no tokenizer": (without_tokenizer, "tokenizer.json"),
    "half a graph": (cut("model.onnx"), "not an ONNX model"),
    "half the weights": (cut("model.onnx.data"), "model.onnx.data has"),
    "half a configuration": (cut("genai_config.json"), "genai_config.json"),
    "no cache": (edited(without_cache), "no input 'past_key_values.0.key'; expected one for each of"),
    "an encoder": (edited(encoder), "no input 'past_key_values.0.key'; expected one for each of"),
    "an unknown operator": (
        edited(mystery),
        "node 'layers.0/mystery' (MysteryNorm): is of the domain 'else.where'; expected",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_folder_is_refused_in_one_line(
    exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
):
    change, says = CASES[case]
    folder = tmp_path / "changed"
    shutil.copytree(exported("genai", "llama", "fp32").folder, folder)
    change(folder)
    with pytest.raises(SystemExit) as ended:
        main(["adopt", str(folder), "-o", str(tmp_path / "graphs")])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vlkv:")]
    assert ended.value.code == 2
    assert len(lines) == 1 and says in lines[0]
    assert not (tmp_path / "graphs").exists()
