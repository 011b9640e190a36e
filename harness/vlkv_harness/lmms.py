"""vlkv as a model of lmms-eval: `lmms-eval --model vlkv --model_args engine=FOLDER,policy=NAME,budget=0.1`.

Also the program of `vlkv eval --harness lmms-eval`. lmms-eval finds `manifest` by the entry point `lmms_eval.models`.
Source: https://github.com/EvolvingLMMs-Lab/lmms-eval
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from vlkv import Engine
from vlkv.errors import EvalError
from vlkv.policies.builtin import DEFAULT_POLICY
from vlkv_harness.answers import answers, question
from vlkv_harness.request import Request, Score, serve


def manifest() -> ModelManifest:
    """What lmms-eval has to know of the model `vlkv`."""
    return ModelManifest("vlkv", simple_class_path="vlkv_harness.lmms.Vlkv")


class Vlkv(lmms):  # type: ignore[misc]
    """An engine under one policy and budget."""

    def __init__(
        self,
        engine: str | Engine,
        policy: str = DEFAULT_POLICY,
        budget: float | None = None,
        prune: str | None = None,
        recall: float | None = None,
        max_new_tokens: int | None = None,
        batch_size: int | str = 1,
        threads: int = 0,
        device: str | None = None,
    ) -> None:
        """Opens the engine, if it is not open.

        Args:
            engine: an engine directory, or an engine.
            policy: see `vlkv.Question`, as `budget`, `prune` and `recall`.
            budget: None for the default.
            prune: None for none.
            recall: None for none.
            max_new_tokens: instead of each task's own limit.
            batch_size: how many questions decode together.
            threads: threads of one operator; 0 uses all cores.
            device: `cpu` or `cuda`; None for `cpu`.
        """
        super().__init__()
        self._engine = (
            engine
            if isinstance(engine, Engine)
            else Engine.load(str(engine), threads=int(threads), device=device or "cpu")
        )
        self._settings = {"policy": policy, "budget": budget, "prune": prune, "recall": recall}
        self._most = max_new_tokens
        self._batch = int(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers of all requests, in their order."""
        return answers(self._engine, map(self._question, requests), self._batch)

    def _question(self, request: Any) -> Any:
        text, limits, visual_of, number, task, split = request.args
        visuals = visual_of(self.task_dict[task][split][number]) or []
        if self._most is not None:
            limits = {**limits, "max_new_tokens": self._most}
        return question(text, visuals, limits, **self._settings)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuses: raises `EvalError`."""
        raise EvalError("vlkv answers tasks of output_type generate_until; this one compares likelihoods")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuses: raises `EvalError`."""
        raise EvalError("vlkv answers tasks of output_type generate_until; this one has several rounds")


def scores(request: Request, folder: Path) -> list[Score]:
    """Answers every task under every setting; the engine is opened once."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("WARNING", include_path=request.data, model_name="vlkv")
    unknown = [task for task in request.tasks if task not in manager.all_tasks]
    if unknown:
        raise EvalError(f"lmms-eval has no task {unknown[0]!r}; `lmms-eval tasks list` prints those it has")
    found = []
    with Engine.load(request.engine, **request.options) as engine:
        for number, setting in enumerate(request.settings):
            model = Vlkv(
                engine,
                **msgspec.to_builtins(setting),
                max_new_tokens=request.max_new_tokens,
                batch_size=request.batch,
            )
            got = simple_evaluate(
                model, tasks=request.tasks, limit=request.samples, task_manager=manager, bootstrap_iters=0
            )
            for task, samples in got.get("samples", {}).items():
                lines = [msgspec.json.encode({"target": str(one["target"]), "answers": one["filtered_resps"]})
                         for one in samples]  # fmt: skip
                (folder / f"{task}-{setting.name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
            for task, values in got["results"].items():
                count = got.get("n-samples", {}).get(task, {}).get("effective")
                found += [
                    Score(number, task, name.split(",")[0], float(value), count)
                    for name, value in values.items()
                    if isinstance(value, (int, float))
                    and not isinstance(value, bool)
                    and "stderr" not in name
                ]
    return found


if __name__ == "__main__":
    sys.exit(serve(scores))
