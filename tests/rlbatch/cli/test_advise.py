from __future__ import annotations

import json
import math

import pytest

from rlbatch.cli import main
from tests.agents.evaluate import cheap_task

CHEAP = f"{cheap_task.__file__}:make"


def test_an_advice_with_its_rate(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["advise", "--task", CHEAP, "--profile", "accelerator-512", "--steps", "40"]
    assert main([*arguments, "--json"]) == 0

    advice = json.loads(capsys.readouterr().out)
    assert advice["default"] == 8
    assert advice["batch_size"] > 8  # a step costs the same at all sizes of this task
    assert not advice["leave"]
    assert advice["learning_rate"] == pytest.approx(0.02 * math.sqrt(advice["batch_size"] / 8))
    assert advice["probe_steps"] <= 40

    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert f"Take batch size {advice['batch_size']}" in text


def test_where_samples_count_a_small_size_is_best(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--task", CHEAP, "--profile", "samples", "--json"]) == 0

    advice = json.loads(capsys.readouterr().out)
    assert advice["batch_size"] <= 8


@pytest.mark.slow
def test_this_machines_own_clock(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--task", CHEAP, "--steps", "30"]) == 0
    assert "wall clock" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--steps", "0"), "steps"),
        (("--steps", "1", "--profile", "cpu"), "before any noise could be measured"),
        (("--objective", "budget=3"), "budget"),
        (("--efficiency", "0.3"), "nothing to weigh"),
        (("--profile", "abacus"), "Unknown profile"),
        (("--seed", "-1"), "seed"),
    ],
)
def test_wrong_use(capsys: pytest.CaptureFixture[str], more: tuple[str, ...], says: str) -> None:
    assert main(["advise", "--task", CHEAP, *more]) == 2
    assert says in capsys.readouterr().err
