"""The Triton model: Triton's Python backend runs this class, in one process per instance."""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb_utils

from vlkv.engine import Engine
from vlkv.errors import SamplingError, ServerStoppedError, VlkvError
from vlkv.ops.cores import divided_threads
from vlkv.policies.builtin import DEFAULT_POLICY, resolve
from vlkv.scheduler import Scheduler
from vlkv.scheduler.allowance import lines
from vlkv.scheduler.memory import default_memory
from vlkv.scheduler.plan import SLOTS
from vlkv.serving.limits import ClientLimits, Clients
from vlkv.serving.size import AUTO, parse_memory
from vlkv.serving.triton.admission import Admission, Asked
from vlkv.serving.triton.exchange import Exchange
from vlkv.serving.triton.inputs import client_of, new_tokens, priority_of, to_question
from vlkv.serving.triton.metrics import Metrics

CHARACTERS_A_TOKEN = 32
"""More than any natural language has; a text longer than this times the model's positions is not tokenised."""
MICRO = 1e-6
DRAIN_SECONDS = 300.0
"""How long running answers may go on when the model is unloaded; tritonserver's own `--exit-timeout-secs` is 30 s."""
END_SECONDS = 10.0
"""How long a thread may take to end after that."""


class TritonPythonModel:
    """See Triton's Python backend for when these methods are called."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the engine; an exception keeps the model unready, and the server's log shows the reason."""
        config = json.loads(args["model_config"])
        given = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self._inputs = [entry["name"] for entry in config["input"]]
        try:
            self._policy = resolve(given.get("policy", DEFAULT_POLICY)).name
            engine = Engine.load(
                given["engine"],
                verify=given.get("verify", "true") == "true",
                threads=int(given.get("threads", 0)) or divided_threads(_instances(config)),
                plugin=given.get("plugin"),
                device=device_of(args),
            )
            names = ("slots", "queue", "prompt_tokens", "capacity", "chunk")
            settings: dict[str, Any] = {name: int(given[name]) for name in names if name in given}
            memory = parse_memory(given.get("memory", AUTO))
            if memory is None and device_of(args) == "cpu":
                facts, shares = engine.manifest, _instances(config)
                memory = default_memory(facts.text, settings.get("slots", SLOTS), shares, facts.cache_dtype)
            settings["reuse"] = parse_memory(given.get("reuse", AUTO))
            settings["memory"] = memory
            self._settings = settings
            self._scheduler: Scheduler = engine.scheduler(**settings)
        except VlkvError as error:
            raise pb_utils.TritonModelException(f"vlkv: {error}") from None
        self._engine = engine
        most = [int(given[name]) if name in given else None for name in ("client_requests", "client_tokens")]
        self._clients, self._client = Clients(ClientLimits(*most), called="client"), given.get("client", "")
        self._longest = CHARACTERS_A_TOKEN * engine.manifest.text.max_positions
        labels = {"model": args["model_name"], "instance": args["model_instance_name"]}
        self._metrics = Metrics(pb_utils, labels)
        self._exchange = self._exchanging()
        self._admission = Admission(self._submit, self._refuse)
        plan, threads = self._scheduler.plan, engine.model.backend.threads or "all"
        for line in lines(plan, engine.manifest):
            pb_utils.Logger.log_info(f"vlkv: {line}")
        pb_utils.Logger.log_info(
            f"vlkv: {given['engine']}, {plan.slots} answers at once, each of {min(plan.capacity)} tokens at most, "
            f"prompts to {plan.prompt_tokens} tokens, caches to {plan.memory} bytes, {threads} threads"
        )

    def execute(self, requests: list[Any]) -> None:
        """Submits requests; answers are sent later."""
        self._revive()
        for request in requests:
            sender = request.get_response_sender()
            try:
                asked = self._asked(request, sender)
            except Exception as error:
                self._fail(sender, error)
                continue
            try:
                self._admission.admit(asked)
            except Exception as error:
                self._refuse(asked, error)

    def _asked(self, request: Any, sender: Any) -> Asked:
        """The request's inputs; it counts for its client from now on."""
        tensors = {}
        for name in self._inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                tensors[name] = tensor.as_numpy()
        parameters = json.loads(request.parameters() or "{}", object_pairs_hook=list)
        deadline = _deadline(request, parameters)
        running = self._clients.begin(client_of(parameters, self._client), new_tokens(tensors))
        return Asked(tensors, deadline, sender, running)

    def _submit(self, asked: Asked) -> None:
        """Puts a request into the queue; with pictures that takes as long as decoding them."""
        try:
            question, stream = to_question(asked.tensors, self._policy, self._longest)
            priority = priority_of(asked.tensors)
            ticket = self._scheduler.submit(question, deadline=asked.deadline, priority=priority)
        except Exception as error:
            self._refuse(asked, error)
            return
        asked.running.tickets = [ticket]
        self._exchange.follow(ticket, asked.sender, stream)

    def _refuse(self, asked: Asked, error: BaseException) -> None:
        if asked.running.tickets is None:
            asked.running.tickets = []
        self._fail(asked.sender, error)

    def _fail(self, sender: Any, error: BaseException) -> None:
        if not isinstance(error, VlkvError):
            pb_utils.Logger.log_error(f"vlkv: {type(error).__name__}: {error}")
        self._exchange.fail(sender, error)

    def finalize(self) -> None:
        """Waits for running answers, then stops. Each wait has a limit."""
        if not hasattr(self, "_exchange"):
            return
        self._admission.close(END_SECONDS)
        if not self._scheduler.close(drain=True, timeout=DRAIN_SECONDS):
            pb_utils.Logger.log_error(f"vlkv: answers still run after {DRAIN_SECONDS:g} s; they are ended")
            self._scheduler.close(drain=False, timeout=END_SECONDS)
        self._exchange.close(END_SECONDS, ServerStoppedError("the server has shut down"))
        self._engine.close()

    def _exchanging(self) -> Exchange:
        exchange = Exchange(pb_utils, self._count)
        exchange.start()
        return exchange

    def _revive(self) -> None:
        """Replaces a thread that an error has ended: Triton itself does not notice it."""
        if not self._scheduler.alive:
            pb_utils.Logger.log_error("vlkv: the scheduler had stopped; a new one begins")
            self._scheduler.close(drain=False, timeout=END_SECONDS)
            self._scheduler = self._engine.scheduler(**self._settings)
            self._metrics.restart()
        if not self._exchange.is_alive():
            pb_utils.Logger.log_error("vlkv: the sending thread had stopped; a new one begins")
            self._exchange = self._exchanging()

    def _count(self) -> None:
        self._metrics.update(self._scheduler.stats())


def device_of(args: dict[str, str]) -> str:
    """Where an instance runs, as Triton's instance group says: `cpu`, or `cuda` with its number."""
    return f"cuda:{args['model_instance_device_id']}" if args.get("model_instance_kind") == "GPU" else "cpu"


def _instances(config: dict[str, Any]) -> int:
    """Processes that serve the model on this machine."""
    groups = config.get("instance_group", [])
    return sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", []))) for group in groups)


def _deadline(request: Any, parameters: list[tuple[str, Any]]) -> float | None:
    """The deadline in seconds from the request's `timeout` in microseconds: a gRPC field or an HTTP parameter."""
    timeout = request.timeout() or dict(parameters).get("timeout", 0)
    try:
        return float(timeout) * MICRO if timeout else None
    except (TypeError, ValueError):
        raise SamplingError(f"timeout {timeout!a:.40} is not a number of microseconds") from None
