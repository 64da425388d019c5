"""Bayesian optimisation of batch size and learning rate, by Optuna's Gaussian-process sampler.

The study lies in a SQLite file that optuna-dashboard opens. The sampler learns from completed
trials only, so that a run that was given up, or does not end as it should, is told as complete with
what such a run counts (`UNREACHED_RATIO` times the best); it is marked `stopped`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlbatch.agents.search.goal import Goal
from rlbatch.agents.search.pool import Evaluate
from rlbatch.agents.search.summary import Point, best, points, stop_rule
from rlbatch.agents.search.trial_store import PATIENCE_SECONDS, connect
from rlbatch.agents.search.trials import Outcome, TrialSpec
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.errors import ConfigurationError, MissingExtraError

ObjectiveName = Literal["cost", "quality"]
STUDY = "batch-size"
SIZE, RATE = "log2_batch_size", "log2_rate"
SIZE_STEP = 0.5  # octaves: finer differences of size are lost in the noise between seeds
_NAMES = [["score"], ["cost", "quality"], ["quality", "cost"]]


@dataclass(frozen=True)
class Bayesian:
    """What is searched, and for how long.

    Attributes:
        smallest: Smallest batch size.
        largest: Largest.
        start: Size of the first trial, at the coupled rate: the user's own.
        trials: Pairs of a size and a rate to try.
        seeds: Runs of each.
        rate_range: How far from the coupled rate is looked, as log2; 0 tunes the size only.
        objectives: `cost` and `quality` for their front; empty for the score.
        startup: Trials at random before the model is asked.
        stop_factor: Multiple of the best cost so far at which a run to a target is given up.
        seed: Of the sampler.
        memory_limit: Bytes of a pass that the constraint allows; None for no constraint.
    """

    smallest: int
    largest: int
    start: int
    trials: int = 20
    seeds: int = 1
    rate_range: float = 2.0
    objectives: tuple[ObjectiveName, ...] = ()
    startup: int = 5
    stop_factor: float = 2.0
    seed: int = 0
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        """Refuse an empty space."""
        if not 1 <= self.smallest <= self.start <= self.largest:
            raise ConfigurationError(
                "Expected 1 <= smallest <= start <= largest, got "
                f"{self.smallest}, {self.start}, {self.largest}. Move the limits."
            )
        if min(self.trials, self.seeds, self.startup) < 1 or self.rate_range < 0:
            raise ConfigurationError(
                "trials, seeds and startup must be at least 1 and rate_range not negative, got "
                f"{self.trials}, {self.seeds}, {self.startup}, {self.rate_range}."
            )
        if list(self.objectives) not in [[], *_NAMES[1:]]:
            raise ConfigurationError(
                "--objectives are cost and quality, both of them, or left out for the one that "
                f"--efficiency mixes of them; got {' '.join(self.objectives)}."
            )


def optimize(
    plan: Bayesian, goal: Goal, evaluate: Evaluate, study_file: Path | None, width: int = 1
) -> dict[TrialSpec, Outcome]:
    """Run the search to its end and return its trials.

    Args:
        plan: What to search.
        goal: What to look for.
        evaluate: Runs trials.
        study_file: Optuna's database, gone on with where it exists; None keeps it in memory.
        width: Trials asked for at once.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigurationError: Two objectives, of which the goal fixes one.
    """
    if plan.objectives and goal.kind != "epochs":
        raise ConfigurationError(
            f"--objectives cost quality needs --objective epochs=N: under {goal.text} one of them "
            "is the same for all."
        )
    return _Search(plan, goal, evaluate, _open_study(plan, study_file)).run(width)


def _open_study(plan: Bayesian, path: Path | None) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "search") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None
    if path is not None:
        with closing(connect(path)):  # WAL mode stays with the file
            pass
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": PATIENCE_SECONDS}}
        )
    study = optuna.create_study(
        storage=storage,
        study_name=STUDY,
        directions=[optuna.study.StudyDirection.MINIMIZE] * (len(plan.objectives) or 1),
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.GPSampler(
        seed=plan.seed + len(study.get_trials(deepcopy=False)),
        n_startup_trials=plan.startup,
        warn_independent_sampling=False,
    )
    return study


class _Search:
    """Asks the study, has trials run, and tells it."""

    def __init__(self, plan: Bayesian, goal: Goal, evaluate: Evaluate, study: Any) -> None:
        self._plan, self._goal, self._evaluate, self._study = plan, goal, evaluate, study
        self._trials: dict[TrialSpec, Outcome] = {}
        self._space = self._distributions()

    def run(self, width: int) -> dict[TrialSpec, Outcome]:
        self._resume()
        while (left := self._plan.trials - self._told()) > 0:
            asked: list[Any] = []
            while len(asked) < min(width, left) and (trial := self._ask(asked)) is not None:
                asked.append(trial)
            if not asked:
                break  # every size is known
            self._run_asked(asked)
        return self._trials

    def _ask(self, asked: Sequence[Any]) -> Any | None:
        """Ask the sampler; a size that it repeats is replaced by the nearest one not tried yet."""
        trial = self._study.ask(self._space)
        if self._plan.rate_range:
            return trial
        known = {spec.batch_size for spec in self._trials}
        known |= {self._specs(other.params)[0].batch_size for other in asked}
        if self._specs(trial.params)[0].batch_size not in known:
            return trial
        from optuna.trial import TrialState

        self._study.tell(trial, state=TrialState.PRUNED)  # nothing new to learn there
        space, wanted = self._space[SIZE], trial.params[SIZE]
        grid = np.arange(space.low, space.high + SIZE_STEP / 2, SIZE_STEP)
        left = [float(place) for place in grid if round(2.0**place) not in known]
        if not left:
            return None
        self._study.enqueue_trial({SIZE: min(left, key=lambda place: abs(place - wanted))})
        return self._study.ask(self._space)

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import FloatDistribution

        plan = self._plan
        low = math.log2(plan.smallest)
        octaves = math.log2(plan.largest) - low
        high = low + SIZE_STEP * math.floor(octaves / SIZE_STEP + 1e-9)
        space: dict[str, Any] = {SIZE: FloatDistribution(low, high, step=SIZE_STEP)}
        if plan.rate_range:
            space[RATE] = FloatDistribution(-plan.rate_range, plan.rate_range)
        return space

    def _told(self) -> int:
        from optuna.trial import TrialState

        return len(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def _resume(self) -> None:
        """Take up finished trials; those that a killed search was at are asked for again."""
        from optuna.trial import TrialState

        known = self._study.get_trials(deepcopy=False)
        if not known:
            low = self._space[SIZE].low
            steps = round((math.log2(self._plan.start) - low) / SIZE_STEP)
            first = {SIZE: min(low + steps * SIZE_STEP, self._space[SIZE].high), RATE: 0.0}
            self._study.enqueue_trial({name: first[name] for name in self._space})
        for trial in known:
            if trial.state == TrialState.COMPLETE:
                specs = self._specs(trial.params)[: trial.user_attrs["runs"]]
                self._trials |= self._evaluate([(spec, self._stop()) for spec in specs])
            elif trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
                if len(trial.params) == len(self._space):
                    self._study.enqueue_trial(trial.params)

    def _specs(self, params: Mapping[str, float]) -> list[TrialSpec]:
        size, rate = round(2.0 ** params[SIZE]), params.get(RATE, 0.0)
        return [TrialSpec(size, rate, seed) for seed in range(self._plan.seeds)]

    def _stop(self) -> Any:
        found = points(self._trials, self._goal)
        return stop_rule(self._trials, self._goal, self._plan.stop_factor, best(found))

    def _run_asked(self, asked: Sequence[Any]) -> None:
        """Run the first seed of all, and the others of those that are not hopeless after it."""
        specs = [self._specs(trial.params) for trial in asked]
        stop = self._stop()
        first = self._evaluate([(one[0], stop) for one in specs])
        rest = [spec for one in specs if first[one[0]].complete for spec in one[1:]]
        done = first | self._evaluate([(spec, stop) for spec in rest])
        self._trials |= done
        for trial, wanted in zip(asked, specs, strict=True):
            self._tell(trial, [done[spec] for spec in wanted if spec in done], wanted[0])

    def _tell(self, trial: Any, outcomes: Sequence[Outcome], spec: TrialSpec) -> None:
        found = {point.key: point for point in points(self._trials, self._goal)}
        point = found[spec.batch_size, spec.rate]
        trial.set_user_attr("batch_size", spec.batch_size)
        trial.set_user_attr("runs", len(outcomes))
        trial.set_user_attr("complete", point.complete)
        trial.set_user_attr("stopped", any(outcome.stopped for outcome in outcomes))
        if self._plan.memory_limit is not None:
            trial.set_constraint("memory", self._excess(point, outcomes, self._plan.memory_limit))
        self._study.tell(trial, self._values(point, list(found.values())))

    def _excess(self, point: Point, outcomes: Sequence[Outcome], limit: int) -> float:
        """Return log2 of what a pass needs over the limit: above 0 it does not fit.

        A pass that was stopped at the limit is taken to need in proportion to its size.
        """
        if point.fits:
            return math.log2(max(1, *(outcome.memory for outcome in outcomes)) / limit)
        known = [(spec.batch_size, o.memory) for spec, o in self._trials.items() if o.memory]
        if not known:
            return 1.0
        size, needed = max(known)
        return max(math.log2(needed * point.batch_size / size / limit), 0.01)

    def _values(self, point: Point, found: Sequence[Point]) -> list[float]:
        """Return what the sampler learns of a point: logarithms, in which noise is even."""
        sound = [p for p in found if p.fits and p.complete == p.runs]
        if not self._plan.objectives:
            value = point.score.value
            if not point.fits or not math.isfinite(value):
                # The constraint says what is wrong; a bad value would spoil the sizes beside it.
                value = min((p.score.value for p in sound), default=1.0)
            return [math.log2(value)]
        pairs = {"cost": point.cost.value, "quality": point.loss.value}
        if not point.fits or point.complete < point.runs:
            worse = 1.0 if not point.fits else UNREACHED_RATIO
            pairs = {
                "cost": min((p.cost.value for p in sound), default=1.0) * worse,
                "quality": min((p.loss.value for p in sound), default=1.0) * worse,
            }
        return [math.log2(pairs[name]) for name in self._plan.objectives]
