"""Decisions in words, from numbers that are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from rlbatch.inspect.attribution import Attribution, attribute
from rlbatch.inspect.explain import Explainer, Why, sentences
from rlbatch.inspect.reading import read_log
from rlbatch.inspect.series import points
from rlbatch.inspect.turning import Turning
from tests.rlbatch.inspect.made import CURVE, EXAMPLE, LOGS, make_log, make_record

NOISE = {"grad_sqr": 1.0, "grad_sqr_se": 0.05, "noise_trace": 1000.0, "noise_trace_se": 60.0}
GRID = [-1.0, 0.0, 1.0]


def signals(loss: float, **more: object) -> dict[str, object]:
    return {"train_loss": loss, "step_cost_curve": CURVE, **NOISE, **more}


RAISED = make_record(
    5,
    batch_size_before=128,
    batch_size=256,
    requested_log2_change=1.0,
    probabilities=[0.05, 0.12, 0.83],
    signals=signals(0.8),
    reasons=["learned: x2 (p=0.83)"],
)
LOG = make_log(*(make_record(i, signals=signals(2.0 - 0.2 * i)) for i in range(5)), RAISED,
               action_grid=GRID)  # fmt: skip


def test_a_raise_is_told_with_its_noise_cost_loss_and_confidence() -> None:
    what, because, says = sentences(LOG, points(LOG), 5, None)

    assert what == (
        "After step 50 (3,200 samples) the batch size was raised from 128 to 256. Confidence 0.83."
    )
    # Six measurements of 1,000 each; a step of 256 costs 16, one of 128 costs 8.
    assert because.startswith("The noise scale (1,000 ± ")
    assert "is 7.8 times the batch" in because
    assert because.endswith("a step of 256 costs 100% more time, the loss falls steadily.")
    assert says == "It says: learned: x2 (p=0.83)."


@pytest.mark.parametrize(
    ("turning", "expected"),
    [
        (
            Turning("noise scale", 0.3, 0.0),
            "It would have stayed had the noise scale been below 300.",
        ),
        (Turning("training loss", 2.0, -1.0), "It would have asked for /2 had the training loss"),
        (Turning("step cost", 2.0, 0.0), "had a step of 256 cost more than 300% more."),
        (Turning("step cost", 0.5, 1.5), "had a step of 256 cost less than 41% more."),
    ],
)
def test_what_would_have_turned_it_is_told_in_its_own_unit(turning: Turning, expected: str) -> None:
    made = Attribution(1.0, 0.0, 1.9, 0.5, {"noise_vs_size": 2.0, "elasticity_x2": -0.6})

    told = sentences(LOG, points(LOG), 5, Why(made, turning))

    assert told[-2] == (
        "Pushes: noise +2.0, cost -0.6 (log odds +1.9 for x2 against stay, +0.5 where nothing is "
        "known)."
    )
    assert expected in told[-1]


def test_what_was_held_back_is_told() -> None:
    limited = replace(RAISED, requested_log2_change=2.0)
    log = replace(LOG, records=(*LOG.records[:5], limited))

    assert "The policy asked for 512; 256 was applied." in sentences(log, points(log), 5, None)


@pytest.mark.parametrize(
    ("event", "sizes", "expected"),
    [
        ("rollback", (64, 32), "the chunk was rolled back; the batch size went from 64 to 32."),
        ("rollback", (64, 64), "the chunk was rolled back; the batch size stayed at 64."),
        ("off", (64, 32), "the controller switched off"),
        ("out_of_memory", (64, 64), "a pass ran out of memory"),
        ("end", (64, 64), "the run ended at batch size 64."),
    ],
)
def test_events(event: str, sizes: tuple[int, int], expected: str) -> None:
    log = make_log(make_record(0, event=event, batch_size_before=sizes[0], batch_size=sizes[1]))

    assert expected in sentences(log, points(log), 0, None)[0]


def test_a_learned_policys_log_is_explained_from_its_own_networks() -> None:
    log = read_log(EXAMPLE)
    explainer, found = Explainer(log), points(log)

    whys = [explainer.why(point) for point in found]

    assert explainer.note == ""
    assert [why is None for why in whys] == [p.record.probabilities is None for p in found]
    for why, point in zip(whys, found, strict=True):
        if why is not None and "floor" not in " ".join(point.record.reasons):
            assert why.attribution.chosen == pytest.approx(point.record.requested_log2_change)
    # In any order, too.
    assert repr(explainer.why(found[2])) == repr(whys[2])


def test_a_decision_is_explained_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    log = read_log(EXAMPLE)
    seen: set[int] = set()

    def noted(*arguments: Any) -> Attribution:
        seen.update(pool["num_threads"] for pool in threadpool_info() if _is_blas(pool))
        return attribute(*arguments)

    monkeypatch.setattr("rlbatch.inspect.explain.attribute", noted)
    with threadpool_limits(2, "blas"):
        Explainer(log).why(points(log)[1], turning=False)

        assert seen == {1}
        assert {pool["num_threads"] for pool in threadpool_info() if _is_blas(pool)} == {2}


def _is_blas(pool: dict[str, Any]) -> bool:
    return pool["user_api"] == "blas"


def test_a_rule_has_its_reasons() -> None:
    log = read_log(LOGS / "live")
    explainer = Explainer(log)

    assert explainer.why(points(log)[3]) is None
    assert explainer.note == ""


def test_another_policy_of_that_name_explains_nothing() -> None:
    log = read_log(EXAMPLE)
    other = replace(log.records[4], probabilities=(0.9, 0.1, 0, 0, 0, 0, 0))
    log = replace(log, records=(*log.records[:4], other))
    explainer = Explainer(log)

    assert explainer.why(points(log)[4]) is None
    assert "it is another now" in explainer.note


def test_a_policy_that_is_not_here_is_said() -> None:
    log = read_log(EXAMPLE)
    log = replace(log, run={**log.run, "policy": "theirs.safetensors"})

    explainer = Explainer(log)

    assert "cannot be used" in explainer.note
    assert explainer.why(points(log)[0]) is None


def test_without_its_beginning_a_log_is_explained_without_turning_points() -> None:
    log = read_log(EXAMPLE)
    cut = replace(log, run={key: value for key, value in log.run.items() if key != "context"})
    explainer = Explainer(cut)

    why = explainer.why(points(cut)[2])

    assert why is not None
    assert not why.searched
    assert "cannot be told" in explainer.note
