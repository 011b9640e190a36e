"""Writes a Triton model repository for an engine: `config.pbtxt`, and a module that names the model's class."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vlkv.errors import EngineError, VlkvError
from vlkv.policies.builtin import DEFAULT_POLICY, resolve
from vlkv.scheduler.allowance import check_plan
from vlkv.scheduler.memory import default_memory
from vlkv.scheduler.plan import SLOTS, Plan, divide
from vlkv.serving.size import AUTO, parse_memory
from vlkv.storage import manifest as manifests
from vlkv.storage.directories import new_directory
from vlkv.storage.files import show, text_path, write_bytes
from vlkv.storage.manifest import Manifest

INPUTS = (
    ("prompt", "STRING", "1", False),
    ("images", "STRING", "-1", True),
    ("policy", "STRING", "1", True),
    ("budget", "FP64", "1", True),
    ("prune", "STRING", "1", True),
    ("recall", "FP64", "1", True),
    ("max_tokens", "INT32", "1", True),
    ("temperature", "FP64", "1", True),
    ("top_k", "INT32", "1", True),
    ("top_p", "FP64", "1", True),
    ("seed", "INT64", "1", True),
    ("stop", "STRING", "-1", True),
    ("stream", "BOOL", "1", True),
    ("repetition_penalty", "FP64", "1", True),
    ("no_repeat_ngram_size", "INT32", "1", True),
    ("min_new_tokens", "INT32", "1", True),
    ("suppress_tokens", "INT32", "-1", True),
    ("bad_words_ids", "INT32", "-1", True),
    ("priority", "INT32", "1", True),
)
"""Name, type, number of values (-1 for any), and whether the input is optional. -1 separates `bad_words_ids`."""
CLIENT = "client"
"""The request parameter that names a request's client by default."""
OUTPUTS = ("text", "finish_reason", "usage")
MODEL = '''"""vlkv's model for Triton's Python backend; `pip install vlkv` in the server's Python."""

from vlkv.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Settings:
    """The settings in a model's `config.pbtxt`.

    Fields:
        engine: the engine directory, by its path on the server.
        name: the model's name.
        slots, memory, queue: settings of each instance's scheduler; `auto` is half of the memory at the server's start.
        policy: the policy of requests that name none.
        threads: threads of one operator; 0 divides the cores by the instances.
        instances: the number of processes that serve the model, on each GPU, each with its own engine and lanes.
        gpus: the devices of the instance group; empty for the CPU.
        plugin: path of `libvlkv_tensorrt.so` on the server, for a TensorRT engine that uses the plugin.
        prompt_tokens: the longest prompt that can be compressed; None for what the memory allows.
        capacity: the most tokens of a lane in each layer; None for what the memory allows.
        chunk: the most prompt tokens between two steps; None for the scheduler's default.
        reuse: the most memory of what was read of pictures and prompts; `auto` is a quarter of `memory`.
        client: the request parameter, or the forwarded header, that names a request's client.
        client_requests, client_tokens: limits of each client at each instance: requests at once, tokens a minute.
    """

    engine: str
    name: str = "vlkv"
    slots: int = SLOTS
    memory: str = AUTO
    queue: int = 64
    policy: str = DEFAULT_POLICY
    threads: int = 0
    instances: int = 1
    gpus: tuple[int, ...] = ()
    plugin: str = ""
    prompt_tokens: int | None = None
    capacity: int | None = None
    chunk: int | None = None
    reuse: str = AUTO
    client: str = CLIENT
    client_requests: int | None = None
    client_tokens: int | None = None

    @property
    def limited(self) -> bool:
        """Whether clients have limits."""
        return self.client_requests is not None or self.client_tokens is not None

    def plan(self, manifest: Manifest) -> Plan:
        """How an instance on the CPU divides its memory, here; `MemoryLimitError` where it can't."""
        text, shares, dtype = manifest.text, self.instances, manifest.cache_dtype
        memory = parse_memory(self.memory)
        if memory is None:
            memory = default_memory(text, self.slots, shares, dtype)
        return divide(text, text.hidden, self.slots, memory, self.capacity, self.prompt_tokens, dtype)


def write_repository(settings: Settings, engine: Path, target: Path) -> Path:
    """Writes `target/NAME/{config.pbtxt,1/model.py}`, whole or not at all; returns the model's folder.

    Other models of the repository stay; a model of this name that `vlkv` wrote gets the new configuration.

    Raises:
        VlkvError: there is no engine, the settings do not fit it, the name is invalid, or a folder of that name was
            not written by vlkv.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", settings.name) is None:
        raise VlkvError(f"model name {settings.name!a:.60} may have letters, digits, '_', '-' and '.' only")
    manifest = manifests.read(engine)
    if manifest.kind != "engine":
        raise EngineError(f"{show(engine)} holds graphs; build an engine from them with `vlkv build`")
    text_path(Path(settings.engine))
    policy = resolve(settings.policy)
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", settings.client) is None:
        raise VlkvError(
            f"client parameter {settings.client!a:.60} may have letters, digits, '_' and '-' only"
        )
    for name in ("queue", "instances", "chunk", "client_requests", "client_tokens"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise VlkvError(f"{name} {value} is under 1")
    if settings.threads < 0:
        raise VlkvError(f"threads {settings.threads} is under 0")
    parse_memory(settings.memory)
    parse_memory(settings.reuse)
    _check_place(manifest, settings.gpus)
    if not settings.gpus:
        chosen = settings.prompt_tokens is not None or settings.capacity is not None
        check_plan(settings.plan(manifest), manifest, policy, chosen)
    folder = target / settings.name
    if _is_ours(folder):
        write_bytes(folder / "config.pbtxt", config(settings).encode())
        return folder
    with new_directory(folder, overwrite=False) as fresh:
        (fresh / "config.pbtxt").write_text(config(settings))
        (fresh / "1").mkdir()
        (fresh / "1" / "model.py").write_text(MODEL)
    return folder


def _check_place(manifest: manifests.Manifest, gpus: tuple[int, ...]) -> None:
    """Refuses GPUs that can't be, and an engine that does not run there, or only there."""
    if len(set(gpus)) < len(gpus) or any(number < 0 for number in gpus):
        raise VlkvError(f"gpus {','.join(map(str, gpus))}: device numbers are from 0, and each is named once")
    if manifest.device is not None and not gpus:
        raise EngineError(f"an engine for {manifest.backend} on a GPU: name it with --gpus 0")
    if gpus and manifest.device is None:
        raise EngineError("--gpus needs an engine for GPUs: build it with --dtype float16 or bfloat16")
    if manifest.device is not None and manifest.device.cache != "in-place":
        raise EngineError(
            f"this engine's caches are {manifest.device.cache}; many requests at once need caches that are updated "
            "in place at any size: build it with --cache in-place"
        )


def _is_ours(folder: Path) -> bool:
    module = folder / "1" / "model.py"
    return module.is_file() and module.read_text(errors="replace") == MODEL


def config(settings: Settings) -> str:
    """The text of `config.pbtxt`."""
    inputs = ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_{kind} dims: [ {count} ]{" optional: true" if optional else ""} }}'
        for name, kind, count, optional in INPUTS
    )
    outputs = ",\n".join(f'  {{ name: "{name}" data_type: TYPE_STRING dims: [ 1 ] }}' for name in OUTPUTS)
    place = f"KIND_GPU gpus: [ {', '.join(map(str, settings.gpus))} ]" if settings.gpus else "KIND_CPU"
    names = [
        "engine",
        "slots",
        "memory",
        "queue",
        "policy",
        "threads",
        "prompt_tokens",
        "capacity",
        "chunk",
        "reuse",
    ]
    names += ["plugin"] if settings.plugin else []
    names += ["client", "client_requests", "client_tokens"] if settings.limited else []
    parameters = "\n".join(
        f'parameters {{ key: "{name}" value: {{ string_value: "{_quote(str(getattr(settings, name)))}" }} }}'
        for name in names
        if getattr(settings, name) is not None
    )
    return f"""name: "{settings.name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
{inputs}
]
output [
{outputs}
]
instance_group [ {{ count: {settings.instances} kind: {place} }} ]
{parameters}
"""


def _quote(text: str) -> str:
    """Quotes a text for protobuf's text format."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
