"""The command line: what it prints, where, and which modules it loads."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import msgspec
import pytest

from vlkv.cli import console
from vlkv.cli.main import main
from vlkv.generation.result import Result

KEYS = [
    "text",
    "token_ids",
    "finish_reason",
    "prompt_tokens",
    "image_tokens",
    "pruned_tokens",
    "cached_tokens",
    "policy",
    "budget",
    "kept_tokens",
    "sparsity",
    "cache_bytes",
    "recall_bytes",
    "recall_bytes_read",
    "cache_bytes_full",
    "seconds",
    "tokens_per_second",
]
PROMPT = "what is the total"


@pytest.fixture(autouse=True)
def usual_verbosity():
    console.VERBOSITY.level = 0
    yield
    console.VERBOSITY.level = 0


def started(*arguments, **environment):
    """Runs the command as a program of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from vlkv.cli.main import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_export_build_run_from_a_checkpoint(vlkv, checkpoint_of, pictures, tmp_path):
    graphs, engine = tmp_path / "graphs", tmp_path / "engine"
    code, out, err = vlkv("export", checkpoint_of("llama"), "-o", graphs)
    assert (code, out) == (0, "")
    assert err.endswith(f"wrote {graphs}\n")
    assert vlkv("build", graphs, "-o", engine) == (0, "", f"wrote {engine}\n")
    code, out, err = vlkv("run", engine, "--image", pictures[0], "--prompt", PROMPT, "--max-new-tokens", 5,
                          "--budget", 0.1)  # fmt: skip
    assert code == 0
    assert len(out.split()) >= 4
    assert out.endswith("\n")
    assert re.fullmatch(
        r"shared-question: 1 of \d+ prompt tokens a layer, cache [\d.]+ MiB \(\d+% of full\), "
        r"first token after [\d.]+ s, \d+ tokens/s\n",
        err,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "graphs"]


def test_json_has_the_documented_keys_and_values(vlkv, built_of, engine_of, pictures):
    code, out, err = vlkv(
        "run", built_of("mistral"), "--image", pictures[0], "--image", pictures[1], "--prompt", PROMPT,
        "--policy", "vl-cache", "--budget", "0.25", "--max-new-tokens", "9", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    got = msgspec.json.decode(out)
    assert list(got) == KEYS
    assert list(got["seconds"]) == ["vision", "prefill", "compress", "decode"]
    want = (
        engine_of("mistral")
        .generate(PROMPT, pictures, policy="vl-cache", budget=0.25, max_new_tokens=9)
        .to_dict()
    )
    for key in set(KEYS) - {"seconds", "tokens_per_second"}:
        assert got[key] == want[key], key
    assert len(got["kept_tokens"]) == len(got["sparsity"]) == 3
    assert got["image_tokens"] == 32
    assert min(got["seconds"].values()) > 0
    assert got["tokens_per_second"] > 0


def test_text_streams_as_it_comes(built_of, pictures, monkeypatch):
    """Each piece is written and flushed before the next token is made."""
    writes = []

    class Out:
        def write(self, text):
            writes.append(text)

        def flush(self):
            writes.append("flush")

    monkeypatch.setattr(sys, "stdout", Out())
    with pytest.raises(SystemExit) as ended:
        main(["-q", "run", str(built_of("llama")), "--image", str(pictures[0]), "--prompt", PROMPT,
              "--budget", "0.1", "--max-new-tokens", "6"])  # fmt: skip
    assert not ended.value.code
    pieces = [text for text in writes if text != "flush"]
    assert len(pieces) == 7
    assert pieces[-1] == "\n"
    for number in range(6):
        assert writes[2 * number + 1] == "flush"


def test_sampling_options_reach_the_engine(vlkv, built_of, engine_of):
    code, out, _ = vlkv(
        "run", built_of("llama"), "--prompt", PROMPT, "--temperature", "1.5", "--top-k", "20", "--top-p", "0.9",
        "--seed", "7", "--stop", "w1", "--stop", "form", "--max-new-tokens", "12", "--raw", "--json",
        "--threads", "1", "--no-verify", "--policy", "full",
    )  # fmt: skip
    want = engine_of("llama").generate(
        PROMPT, temperature=1.5, top_k=20, top_p=0.9, seed=7, stop=("w1", "form"), max_new_tokens=12, raw=True,
        policy="full",
    )  # fmt: skip
    got = msgspec.json.decode(out)
    assert code == 0
    for key in ("token_ids", "text", "finish_reason", "prompt_tokens", "policy", "budget"):
        assert got[key] == getattr(want, key)


def test_quiet_says_nothing_but_the_answer(vlkv, checkpoint_of, tmp_path):
    assert vlkv("--quiet", "export", checkpoint_of("llama"), "-o", tmp_path / "graphs") == (0, "", "")
    assert vlkv("-q", "build", tmp_path / "graphs", "-o", tmp_path / "engine") == (0, "", "")
    code, out, err = vlkv("-q", "run", tmp_path / "engine", "--prompt", PROMPT, "--max-new-tokens", 3)
    assert (code, err) == (0, "")
    assert out.strip()


def test_verbose_names_the_steps(vlkv, checkpoint_of, tmp_path):
    code, out, err = vlkv("--verbose", "export", checkpoint_of("llama"), "-o", tmp_path / "graphs")
    assert (code, out) == (0, "")
    assert err.splitlines()[:2] == ["reading the checkpoint", "copying the weights"]
    assert err.splitlines()[-1] == f"wrote {tmp_path / 'graphs'}"


def test_version_names_backends_and_packages(vlkv):
    code, out, err = vlkv("--version")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert re.fullmatch(r"vlkv \d+\.\d+\.\d+", lines[0])
    for package in ("onnxruntime", "tokenizers", "numpy", "pillow", "onnx", "onnx-ir", "onnxscript"):
        assert any(re.fullmatch(rf"  {package} \d[\w.+]*", line) for line in lines), package
    assert any(line.startswith("  operators: ") for line in lines)
    assert any(re.fullmatch(r"  backend onnxruntime: .*\bCPU\b.*", line) for line in lines)
    assert any(line.startswith("  backend tensorrt-rtx: ") for line in lines)


def test_paths_are_printed_as_they_are(vlkv, checkpoint_of, tmp_path):
    target = tmp_path / "[red]a [" / "[bold] :smile: x"
    assert vlkv("--verbose", "export", checkpoint_of("llama"), "-o", target)[2].endswith(f"wrote {target}\n")


def test_no_command_prints_the_help(vlkv):
    for arguments in ((), ("-q",)):
        code, out, err = vlkv(*arguments)
        assert (code, err) == (2, "")
        assert "Usage" in out
        assert "export" in out


def test_help_lists_the_commands():
    done = started("--help")
    assert done.returncode == 0
    for command in ("export", "build", "run", "policies"):
        assert re.search(rf"\b{command}\b", done.stdout)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1", "FORCE_COLOR": "1"}, {}], ids=["forced", "piped"])
def test_no_colour_where_none_is_wanted(built_of, environment):
    done = started("run", built_of("llama"), "--prompt", PROMPT, "--max-new-tokens", 3, **environment)
    assert done.returncode == 0
    assert "prompt tokens a layer" in done.stderr
    colours = re.compile(r"\x1b\[[\d;]*(3[0-7]|9[0-7]|4[0-7])[\d;]*m")
    assert not colours.search(done.stdout + done.stderr)
    assert "\x1b" not in done.stdout


LOADED = """
import sys
{first}
heavy = {{"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "vlkv_export"}}
print(*sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("first", "allowed"),
    [
        ("import vlkv", set()),
        ("from vlkv import Engine, Policy, Question, Result", set()),
        ("import vlkv.engine", set()),
        ("from vlkv import ops; ops.allocate([0.1, 0.5], 10, 0.5)", set()),
        ("import vlkv.backend.onnxruntime", {"onnxruntime"}),
    ],
)
def test_imports_load_nothing_heavy(first, allowed):
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(first=first)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= allowed


def test_import_of_the_package_is_instant():
    """Nothing but the standard library is loaded, which takes milliseconds."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; old = set(sys.modules); import vlkv; print(*set(sys.modules) - old)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded <= set(sys.stdlib_module_names) | {"vlkv"}
    assert len([name for name in done.stdout.split() if name.startswith("vlkv")]) == 1


def test_running_an_engine_loads_no_part_of_the_export(built_of, pictures):
    first = (
        f"from vlkv import Engine; Engine.load({str(built_of('llama'))!r})"
        f".generate('what', [{str(pictures[0])!r}], max_new_tokens=3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(first=first)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["onnxruntime"]


def test_result_without_an_answer_is_json_too():
    assert list(msgspec.json.decode(msgspec.json.encode(Result().to_dict()))) == KEYS
