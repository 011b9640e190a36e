"""The proposer without a language model: Optuna's TPE sampler over an operator's constants and flags.

Source: Optuna (arXiv 1907.10902), whose sampler is the tree-structured Parzen estimator (Bergstra et al., 2011).
"""

from __future__ import annotations

import math
from typing import Any

from vlkv.errors import TuneError
from vlkv.tune.operators.constants import Choice, Operator, parse
from vlkv.tune.operators.library import LEVEL
from vlkv.tune.proposal import Proposal, State
from vlkv.tune.toolchain import Candidate
from vlkv.tune.verdict import Verdict

RANDOM = 6
"""Choices that are drawn before the sampler begins to learn."""
TRIES = 30
NONE = ""


class ConstantSearch:
    """Proposes choices for one operator. A choice that was seen is not proposed again while there are others."""

    name = "search"

    def __init__(self, operator: Operator, seed: int = 0) -> None:
        try:
            import optuna
        except ImportError as error:
            raise TuneError(f"the search over constants needs the packages of vlkv[tune]: {error}") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self.operator = optuna, operator
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM)
        self._study = optuna.create_study(sampler=sampler)
        category = optuna.distributions.CategoricalDistribution
        self._space: dict[str, Any] = {name: category(values) for name, values in operator.constants.items()}
        self._space |= {group: category((NONE, *options)) for group, options in operator.flags.items()}
        self._seen = {Choice().text()}
        self._trial: Any = None
        self._relative = 1.0

    def propose(self, state: State) -> list[Proposal]:
        """Draws a choice."""
        for _ in range(TRIES):
            self._trial = self._study.ask(self._space)
            choice = self._choice(self._trial.params)
            if choice.text() not in self._seen:
                break
            self._study.tell(self._trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._trial = None
            return [Proposal(None, "the search finds no choice that was not tried")]
        self._seen.add(choice.text())
        self._relative = state.relative
        return [Proposal(Candidate(LEVEL, choice.text(), (), self.name))]

    def learn(self, proposal: Proposal, verdict: Verdict) -> None:
        """Tells the sampler the time over the installed operators', or that the choice failed."""
        if verdict.ratio is None:
            self._study.tell(self._trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(self._trial, math.log(self._relative * verdict.ratio.value))

    def remember(self, record: dict[str, Any]) -> None:
        """Takes in a record of an earlier run, which has the choice's text in `choice`."""
        if "choice" not in record:
            return
        choice = parse(self.operator, record["choice"])
        self._seen.add(choice.text())
        if "ratio" in record:
            value = record["relative"] * (1.0 if record["admitted"] else record["ratio"]["value"])
            made = self._optuna.trial.create_trial(
                params=self._params(choice), distributions=self._space, value=math.log(value)
            )
            self._study.add_trial(made)

    def _choice(self, params: dict[str, Any]) -> Choice:
        constants = self.operator.constants
        flags = tuple(sorted(params[group] for group in self.operator.flags if params[group] != NONE))
        return Choice({n: params[n] for n in constants if params[n] != constants[n][0]}, flags)

    def _params(self, choice: Choice) -> dict[str, Any]:
        values = {n: choice.constants.get(n, allowed[0]) for n, allowed in self.operator.constants.items()}
        groups = self.operator.flags.items()
        flags = {g: next((f for f in choice.flags if f in options), NONE) for g, options in groups}
        return values | flags
