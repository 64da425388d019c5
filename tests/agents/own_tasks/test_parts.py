"""What a training on one's own tasks is made of, each part by itself."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from rlbatch.agents.evaluate.fixed_curves import WITHOUT_SCHEDULE
from rlbatch.agents.evaluate.settings import task_identity
from rlbatch.agents.executor import SerialExecutor
from rlbatch.agents.own_tasks.baselines import best_shifts
from rlbatch.agents.own_tasks.budget import (
    FIRST_ROUNDS,
    MOST_ROUNDS,
    MOST_SEGMENTS,
    SCHEDULES_SHARE,
    Budget,
    Pace,
    divide,
    load_division,
)
from rlbatch.agents.own_tasks.compared_run import RunOutcome, smoothed_cost
from rlbatch.agents.own_tasks.evaluation import scores
from rlbatch.agents.own_tasks.fixed_costs import (
    CurveResult,
    CurveWork,
    TaskCosts,
    all_costs,
    mean_costs,
    run_curves,
)
from rlbatch.agents.own_tasks.learning import taught
from rlbatch.agents.own_tasks.plan import Plan, absolute, load_plan, save_plan
from rlbatch.agents.own_tasks.rule_networks import size_policy
from rlbatch.agents.own_tasks.sampler import OwnTaskSampler
from rlbatch.agents.own_tasks.schedules import ScheduleSearch
from rlbatch.agents.own_tasks.target_watch import TargetWatch
from rlbatch.agents.own_tasks.validation import Candidate, Validation
from rlbatch.envs.fixed_run import fixed_run_curve
from rlbatch.envs.live import Validation as Seen
from rlbatch.envs.privileged import LARGEST_REGRET
from rlbatch.envs.task import resolve_task
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.card import PolicyCard
from rlbatch.signals.record import Coupling

CHEAP = f"{Path(__file__).parents[1] / 'evaluate' / 'cheap_task.py'}:make"
PLAN = Plan(tasks=(CHEAP,), starts=(0.5, 1.0), seeds=2)


def result(**costs: float) -> CurveResult:
    return CurveResult({int(size[1:]): cost for size, cost in costs.items()}, None, 1)


def test_costs_are_geometric_means_in_which_a_failure_counts_four_times_the_best() -> None:
    both = mean_costs(PLAN, CHEAP, [result(s8=2.0, s16=1.0), result(s8=8.0, s16=1.0, s32=2.0)])
    assert both.costs[16] == pytest.approx(1.0)
    assert both.costs[8] == pytest.approx(math.sqrt(2.0 * 4.0))  # 8 is more than the cap
    assert both.costs[32] == pytest.approx(math.sqrt(4.0 * 2.0))
    assert both.costs[1] == math.inf
    assert (both.best_size, both.reference) == (16, pytest.approx(1.0))
    assert best_shifts([both])[0] == 1


def test_a_task_without_anything_to_decide_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no fixed batch size"):
        mean_costs(PLAN, CHEAP, [result(), result(s8=1.0)])
    with pytest.raises(ConfigurationError, match="nothing to decide"):
        mean_costs(PLAN, CHEAP, [result(s8=1e-9), result(s8=1e-9)])


def test_curves_cost_what_plain_runs_do_and_are_made_once(tmp_path: Path) -> None:
    task = resolve_task(CHEAP)
    work = CurveWork(PLAN, CHEAP, 1, tmp_path, task_identity(CHEAP, task))
    made = run_curves(work)
    plain = fixed_run_curve(
        task, 4, seed=10_001, coupling=Coupling.SQRT, max_steps=20_000, target_loss=task.target
    )
    expected = PLAN.clock.run_cost(int(plain.steps[-1]), 4, 50, task.batch_size)
    assert made.costs[4] == pytest.approx(float(expected))
    assert made.curves > 2
    again = run_curves(work)
    assert (again.curves, again.costs) == (0, made.costs)

    # Where the folder is out of reach, what is known is sent along and what was made comes back.
    content = work.path.read_bytes()
    known = content[: content.index(b"\n") + 1]
    elsewhere = work._replace(folder=tmp_path / "unknown", known=known)
    sent = run_curves(elsewhere)
    assert (sent.curves, sent.costs) == (made.curves - 1, made.costs)
    assert known + sent.added == content
    assert not elsewhere.path.exists()
    with pytest.raises(ConfigurationError, match="has another task"):
        run_curves(work._replace(identity="another"))


def test_costs_once_taken_stay_as_they_are(tmp_path: Path) -> None:
    """Else the ratios from before a stop would be of another reference than those after it."""

    def costs(until: float) -> dict[int, float]:
        executor = SerialExecutor()
        (own,) = all_costs(
            *(PLAN, tmp_path, executor), until=until, patience=math.inf, tick=lambda: None
        )
        return own.costs

    first = costs(-math.inf)
    assert costs(math.inf) == first
    (tmp_path / "seeds.json").write_text("{}")  # of another training
    both = costs(math.inf)
    assert both != first
    assert costs(-math.inf) == both


def test_a_search_that_is_over_is_not_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, begun = [0.0], list[str]()

    def run(self: Validation, candidates: list[Candidate], rounds: int, *_: object, until: float):
        """Take a second for each run, in which later candidates are the better ones."""
        for number in range(rounds):
            for place, one in enumerate(candidates):
                for key in self.keys(one.name, [number]):
                    if key not in self._outcomes and now[0] < until:
                        now[0] += 1.0
                        begun.append(one.name)
                        ratio = (1.0 - 0.01 * place) ** (1 - 2 * number)
                        self._outcomes[key] = RunOutcome(ratio, ratio, reached=True)

    monkeypatch.setattr(Validation, "run", run)
    monkeypatch.setattr("rlbatch.agents.own_tasks.schedules.time.monotonic", lambda: now[0])
    costs = [TaskCosts(CHEAP, {4: 2.0, 8: 1.0, 16: 3.0}, None)]
    search = ScheduleSearch(PLAN, costs, (-1.0, 0.0, 1.0), PolicyCard(), tmp_path / "long")
    given = ([0, 1], SerialExecutor(), lambda done, total: None)
    search.run(*given, 40.0, 1.0)  # time for 40 runs, two a round
    assert len(begun) == 40
    assert len(set(begun)) == 10  # half of the time for the first round

    now[0] = 0.0
    begun.clear()
    search = ScheduleSearch(PLAN, costs, (-1.0, 0.0, 1.0), PolicyCard(), tmp_path)
    given = ([0, 1], SerialExecutor(), lambda done, total: None)
    found = search.run(*given, 100.0)
    assert found
    assert len(begun) == 100
    assert search.run(*given, 400.0) == found
    assert len(begun) == 100
    (tmp_path / "found.json").write_text("{")  # a damaged note costs time, no more
    assert search.run(*given, 400.0)
    assert len(begun) > 100


def test_draws_are_of_the_plan() -> None:
    costs = TaskCosts(CHEAP, {4: 2.0, 8: 1.0, 16: 3.0}, None)
    sampler, rng = OwnTaskSampler(PLAN, [costs]), np.random.default_rng(0)
    drawn = [sampler(rng) for _ in range(40)]
    assert {setting.start_batch_size for setting in drawn} == {4, 8}
    assert min(setting.seed for setting in drawn) >= 1_000_000
    assert all(setting.reference_cost == 1.0 for setting in drawn)


def test_validation_goes_on_where_it_was(tmp_path: Path) -> None:
    costs = TaskCosts(CHEAP, {4: 0.02, 8: 0.02, 16: 0.02}, None)
    path, candidate = tmp_path / "validation.jsonl", Candidate("stay", "fixed", "rule")
    counts: list[int] = []

    def on_progress(done: int, total: int) -> None:
        counts.append(total)

    Validation(PLAN, [costs], path).run([candidate], 1, SerialExecutor(), on_progress)
    lines = path.read_text().splitlines()
    assert len(lines) == 2 == counts[0]
    path.write_text(lines[0] + "\n" + lines[1][:20])  # killed while it wrote
    again = Validation(PLAN, [costs], path)
    assert again.run_seconds == pytest.approx(json.loads(lines[0])["seconds"])
    assert again.rounds_of("stay") == 0
    again.run([candidate], 2, SerialExecutor(), on_progress)
    assert counts[-1] == 3
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(row["start"], row["seed"]) for row in rows} == {(0.5, 0), (1.0, 1), (0.5, 2), (1.0, 3)}
    ratios = [json.loads(line)["ratio"] for line in path.read_text().splitlines()]
    assert again.rounds_of("stay") == 2
    assert again.score("stay", 2) == pytest.approx(float(np.exp(np.mean(np.log(ratios)))))


def test_time_is_counted_over_stops(tmp_path: Path) -> None:
    budget = Budget(tmp_path, 10.0)
    (tmp_path / "time.json").write_text('{"seconds": 540.0}')
    assert budget.left > Budget(tmp_path, 10.0).left
    assert 50.0 < Budget(tmp_path, 10.0).left <= 60.0
    assert Budget(tmp_path, 1.0).left == 0.0


def test_learning_has_as_many_parts_as_can_be_compared() -> None:
    quick, slow = Pace(1.0), Pace(100.0)
    assert quick.segments(600.0) == MOST_SEGMENTS
    assert [slow.segments(seconds) for seconds in (-1.0, 299.0, 300.0, 700.0)] == [0, 0, 1, 2]
    assert slow.learning(300.0) == 200.0  # what is left is for the comparison
    assert quick.learning(100.0) == 85.0
    assert quick.searching(600.0) == SCHEDULES_SHARE * 600.0
    assert slow.searching(600.0) == 600.0  # a third of it is not enough to learn in


def test_seeds_are_fewer_where_time_is_short(tmp_path: Path) -> None:
    rich = divide(10_000.0, 1.0, tasks=1, starts=3, seeds=4, sizes=10)
    poor = divide(200.0, 1.0, tasks=1, starts=3, seeds=4, sizes=10)
    none = divide(0.0, 1.0, tasks=1, starts=3, seeds=4, sizes=10)
    assert (rich.validation_rounds, rich.test_seeds) == (MOST_ROUNDS, 4)
    assert poor.reserved <= 0.6 * 200.0
    assert (none.validation_rounds, none.test_seeds) == (FIRST_ROUNDS, 2)
    poor.save(tmp_path)
    assert load_division(tmp_path) == poor


def test_a_plan_holds_in_any_folder_and_notices_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / "my tasks"
    folder.mkdir()
    source = Path(CHEAP.rpartition(":")[0]).read_text()
    (folder / "a task.py").write_text(source)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    whole = f"{folder / 'a task.py'}:make"
    assert absolute("a task.py:make") == absolute("~/my tasks/a task.py:make") == whole
    assert absolute("digits-mlp") == "digits-mlp"
    plan = Plan(tasks=(whole,))
    save_plan(plan, tmp_path)
    monkeypatch.chdir("/")
    assert load_plan(tmp_path) == load_plan(tmp_path, [whole]) == plan
    with pytest.raises(ConfigurationError, match="holds a training on"):
        load_plan(tmp_path, ["digits-mlp"])
    (folder / "a task.py").write_text(source + "\n")
    with pytest.raises(ConfigurationError, match="changed since"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ()}, "at least one"),
        ({"starts": (0.0,)}, "positive multiples"),
        ({"seeds": 0}, "at least 1"),
        ({"coupling": "adascale"}, "adascale"),
        ({"profile": "wall"}, "rlbatch profile"),
    ],
)
def test_what_cannot_be_run_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Plan(**{"tasks": ("digits-mlp",), **wrong})


def test_scores_are_by_start_and_over_all() -> None:
    def row(policy: str, start: int, seed: int, ratio: float) -> dict:
        return {
            **{"policy": policy, "task": CHEAP, "start_batch_size": start, "seed": seed},
            **{"ratio": ratio, "reached": ratio < 4},
        }

    rows = [row("a", 4, 0, 1.0), row("a", 4, 1, 4.0), row("a", 8, 0, 2.0), row("a", 8, 1, 2.0)]
    (score,) = scores(PLAN, [*rows, row("b", 4, 0, 9.0)], [Candidate("first", "a", "rule")], "a")
    assert score.by_start == (pytest.approx(2.0), pytest.approx(2.0))
    assert (score.all.value, score.reached) == (pytest.approx(2.0), 0.75)
    assert score.kept


def seen(*points: tuple[float, float]) -> list[Seen]:
    return [Seen(step, 8 * step, cost, loss) for step, (cost, loss) in enumerate(points, start=1)]


def test_smoothed_costs_are_of_the_target_and_just_above_it() -> None:
    run = seen((1.0, 3.0), (2.0, 1.14), (3.0, 1.06), (4.0, 1.01), (8.0, 1.0))
    # At 1.15, 1.1, 1.05 and 1.0.
    assert smoothed_cost(run, 1.0) == pytest.approx((2.0 * 3.0 * 4.0 * 8.0) ** 0.25)
    near = seen((1.0, 1.01), (2.0, 1.001), (4.0, 1.0))  # no further than a tenth of the way
    assert smoothed_cost(near, 1.0) == pytest.approx((2.0 * 4.0**3) ** 0.25)
    assert smoothed_cost(seen((5.0, 0.5)), 1.0) == pytest.approx(5.0)


def validated(path: Path, ratios: dict[str, list[float]]) -> Validation:
    rows = [
        {"candidate": name, "task": CHEAP, "start": PLAN.starts[seed % 2], "seed": seed}
        | {"ratio": ratio, "reached": True}
        for name, each in ratios.items()
        for seed, ratio in enumerate(each)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Validation(PLAN, [TaskCosts(CHEAP, {8: 1.0}, None)], path)


def test_a_lucky_candidate_is_not_taken_for_a_better_one(tmp_path: Path) -> None:
    base, lucky, better = (Candidate(name, name, "learned") for name in ("base", "lucky", "better"))
    validation = validated(
        tmp_path / "runs.jsonl",
        {
            "base": [1.0, 1.2, 0.9, 1.1],
            "lucky": [0.5, 1.2, 1.0, 1.1],  # the least mean, by one run
            "better": [0.95, 1.13, 0.86, 1.05],
        },
    )
    candidates = [base, lucky, better]
    assert validation.best(candidates, 2) is lucky
    assert validation.surest(base, candidates, 2) is better
    assert validation.surest(base, [base, lucky], 2) is base


def test_luck_at_the_target_is_shown_and_does_not_choose(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    validation = validated(path, {"lucky": [0.9, 0.9], "better": [1.0, 1.0]})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["smoothed"] = {"lucky": 1.1, "better": 1.0}[row["candidate"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = Validation(PLAN, [TaskCosts(CHEAP, {8: 1.0}, None)], path)
    lucky, better = (Candidate(name, name, "learned") for name in ("lucky", "better"))
    assert validation.best([lucky, better], 1) is lucky  # nothing else was noted before
    assert again.best([lucky, better], 1) is again.ranked([lucky, better])[0] is better
    assert again.surest(lucky, [lucky, better], 1) is better
    assert again.scores([lucky]) == {"lucky": (pytest.approx(0.9), 2)}


def test_candidates_are_ranked_by_the_rounds_that_all_have(tmp_path: Path) -> None:
    ratios = {"a": [1.0, 1.0, 9.0, 9.0], "b": [2.0, 2.0], "c": [3.0]}
    validation = validated(tmp_path / "runs.jsonl", ratios)
    a, b, c = (Candidate(name, name, "schedule") for name in ratios)
    assert validation.ranked([c, b, a]) == [a, b]  # c is in the middle of its first round
    assert validation.ranked([a, b], 1) == [a, b]
    assert validation.scores([c, b, a]) == {"a": (pytest.approx(3.0), 4), "b": (2.0, 2)}


def curve_line(task: str, losses: list[float], reached: bool) -> str:
    curve = {"steps": [10, 20], "samples": [80, 160], "val_loss": losses, "reached": reached}
    return json.dumps({"key": {"task": task, "batch_size": 8}, "curve": curve}) + "\n"


def test_a_target_that_nothing_reaches_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    patient, hasty = TargetWatch({"t": path}, 1e9), TargetWatch({"t": path}, 0.0)
    path.write_text(curve_line(f"t{WITHOUT_SCHEDULE}", [2.0, 1.0], reached=True))
    patient.look()
    with pytest.raises(ConfigurationError, match="The first run has not ended yet"):
        hasty.look()
    path.write_text(path.read_text() + curve_line("t", [2.0, 0.75], reached=False))
    patient.look()
    with pytest.raises(ConfigurationError, match=r"was 0\.75, at batch size 8 with 20 steps"):
        hasty.look()
    path.write_text(path.read_text() + curve_line("t", [2.0, 0.5], reached=True))
    hasty.look()
    path.write_text("")
    hasty.look()  # what has been reached once is not looked at again


def test_runs_whose_loss_was_not_finite_are_told(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    row = json.loads(curve_line("t", [2.0], reached=False))
    row["curve"]["diverged"] = True
    path.write_text(curve_line("t", [2.0, 1.5], reached=False) + json.dumps(row) + "\n")
    with pytest.raises(ConfigurationError, match="In 1 of 2 runs the loss was no longer finite"):
        TargetWatch({"t": path}, 0.0).look()
    with pytest.raises(ConfigurationError, match=r"was 1\.5, .* In 1 of 2 runs"):
        mean_costs(PLAN, CHEAP, [result()], path)


def test_a_network_is_taught_what_a_schedule_decides() -> None:
    actions = (-2.0, -1.0, 0.0, 1.0, 2.0)
    teacher = size_policy(1.0, actions, PolicyCard()).members[0]
    told = np.zeros((1, OBSERVATION_SIZE), np.float32)  # at the task's size: one doubling to go
    distances = np.array([3.0, 2.0, 1.0, 0.0, 1.0])
    wanted = np.minimum(distances**2 / 4.0, LARGEST_REGRET)
    np.testing.assert_allclose(taught(teacher, told), [wanted], atol=1e-6)
