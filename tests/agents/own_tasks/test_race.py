"""Who is run on, and when a race is over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlbatch.agents.own_tasks.budget import MOST_ROUNDS
from rlbatch.agents.own_tasks.compared_run import RunOutcome
from rlbatch.agents.own_tasks.race import race
from rlbatch.agents.own_tasks.validation import Candidate
from tests.agents.own_tasks.test_parts import CHEAP, PLAN, validated

NOISE = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.02, 0.97, 1.0, 1.1]


def raced(tmp_path: Path, ratios: dict[str, list[float]], rounds: int) -> tuple[int, list]:
    """Race all candidates but the first, whose runs come from a list; return who ran on."""
    known = {name: each[:4] for name, each in ratios.items()}
    validation = validated(tmp_path / "runs.jsonl", known)
    base, *others = (Candidate(name, name, "learned") for name in ratios)
    calls = []

    def run(field: Sequence[Candidate], until: int) -> None:
        calls.append([one.name for one in field])
        for one in field:
            for start, place in zip(PLAN.starts, range(2 * until - 2, 2 * until), strict=True):
                key = one.name, CHEAP, start, place
                ratio = ratios[one.name][place]
                validation._outcomes[key] = RunOutcome(ratio, ratio, reached=True)

    return race(validation, base, others, rounds, run), calls


def test_a_race_is_run_on_by_those_that_may_win(tmp_path: Path) -> None:
    ratios = {
        "base": NOISE,
        "far": [1.3 * one for one in reversed(NOISE)],
        "surely worse": [1.02 * one for one in NOISE],
        "better": [0.97 * one * (1.02 if at % 2 else 0.98) for at, one in enumerate(NOISE)],
    }
    made, calls = raced(tmp_path, ratios, 100)
    assert calls == [["base", "better"]] * 2  # over as soon as four rounds are sure
    assert made == 4
    made, calls = raced(tmp_path, ratios, 3)
    assert (made, len(calls)) == (3, 1)  # one round of two candidates; a second has no room
    del ratios["better"]
    assert raced(tmp_path, ratios, 100) == (2, [])  # nobody is left but what is kept anyway


def test_a_race_that_stays_open_ends_with_its_rounds(tmp_path: Path) -> None:
    ratios = {"base": NOISE, "other": NOISE[::-1]}
    made, calls = raced(tmp_path, ratios, 100)
    assert (made, len(calls)) == (MOST_ROUNDS, MOST_ROUNDS - 2)
