"""The Triton model: Triton's Python backend runs this class, in one process per instance."""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb_utils

from vlkv.engine import Engine
from vlkv.errors import SamplingError, VlkvError
from vlkv.policies.builtin import DEFAULT_POLICY, resolve
from vlkv.scheduler import Scheduler
from vlkv.serving.size import parse_size
from vlkv.serving.triton.exchange import Exchange
from vlkv.serving.triton.inputs import to_question
from vlkv.serving.triton.metrics import Metrics

CHARACTERS_A_TOKEN = 32
"""More than any natural language has; a text longer than this times the model's positions is not tokenised."""
MICRO = 1e-6


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
                threads=int(given.get("threads", 0)),
                plugin=given.get("plugin"),
                device=device_of(args),
            )
            settings = {name: int(given[name]) for name in ("slots", "queue") if name in given}
            if "memory" in given:
                settings["memory"] = parse_size(given["memory"])
            self._scheduler: Scheduler = engine.scheduler(**settings)
        except VlkvError as error:
            raise pb_utils.TritonModelException(f"vlkv: {error}") from None
        self._engine = engine
        self._longest = CHARACTERS_A_TOKEN * engine.manifest.text.max_positions
        labels = {"model": args["model_name"], "instance": args["model_instance_name"]}
        self._metrics = Metrics(pb_utils, labels)
        self._exchange = Exchange(pb_utils, self._count)
        self._exchange.start()
        plan = self._scheduler.plan
        pb_utils.Logger.log_info(
            f"vlkv: {given['engine']}, {plan.slots} answers at once, each of {min(plan.capacity)} tokens at most, "
            f"prompts to {plan.prompt_tokens} tokens, caches to {plan.memory} bytes"
        )

    def execute(self, requests: list[Any]) -> None:
        """Submits requests; answers are sent later."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                tensors = {}
                for name in self._inputs:
                    tensor = pb_utils.get_input_tensor_by_name(request, name)
                    if tensor is not None:
                        tensors[name] = tensor.as_numpy()
                question, stream = to_question(tensors, self._policy, self._longest)
                ticket = self._scheduler.submit(question, deadline=_deadline(request))
                self._exchange.follow(ticket, sender, stream)
            except Exception as error:
                if not isinstance(error, VlkvError):
                    pb_utils.Logger.log_error(f"vlkv: {type(error).__name__}: {error}")
                self._exchange.fail(sender, error)

    def finalize(self) -> None:
        """Waits for running answers, then stops."""
        if hasattr(self, "_exchange"):
            self._scheduler.close(drain=True)
            self._exchange.close()
            self._engine.close()

    def _count(self) -> None:
        self._metrics.update(self._scheduler.stats())


def device_of(args: dict[str, str]) -> str:
    """Where an instance runs, as Triton's instance group says: `cpu`, or `cuda` with its number."""
    return f"cuda:{args['model_instance_device_id']}" if args.get("model_instance_kind") == "GPU" else "cpu"


def _deadline(request: Any) -> float | None:
    """The deadline in seconds from the request's `timeout` in microseconds: a gRPC field or an HTTP parameter."""
    timeout = request.timeout() or json.loads(request.parameters() or "{}").get("timeout", 0)
    try:
        return float(timeout) * MICRO if timeout else None
    except (TypeError, ValueError):
        raise SamplingError(f"timeout {timeout!a:.40} is not a number of microseconds") from None
