from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlbatch.cli import main
from rlbatch.envs.profiles import resolve_profile
from tests.agents.evaluate import cheap_task

CHEAP = f"{cheap_task.__file__}:make"
QUICK = ("--rounds", "2", "--largest", "64")


def profile(out: Path, *more: str) -> list[str]:
    return ["profile", "--task", CHEAP, "--out", str(out), *more]


def test_the_file_is_a_profile_that_run_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(profile(out, *QUICK)) == 0
    text = capsys.readouterr().out
    assert "Largest micro-batch: 64 (no larger one was looked for)" in text
    made = resolve_profile(str(out / "profile.json"))
    assert made.max_micro_batch_size == 64
    assert (out / "profile.png").stat().st_size > 5000
    measured = json.loads((out / "measured.json").read_text())
    assert [step["size"] for step in measured["steps"]] == [1, 2, 4, 8, 16, 32, 64]

    clock = ["--profile", str(out / "profile.json"), "--json"]
    capsys.readouterr()
    run = ["run", "--task", CHEAP, "--policy", "fixed", "--out", str(tmp_path / "run")]
    assert main([*run, *clock]) == 0
    result = json.loads(capsys.readouterr().out)
    # 7 steps an epoch of 50 samples, the last of them with the 2 samples that are left.
    epochs, rest = divmod(result["steps"], 7)
    full, last = made.step_seconds(8), made.step_seconds(2)
    assert result["cost"] == pytest.approx(float(epochs * (6 * full + last) + rest * full))


def test_a_byte_limit_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = profile(tmp_path / "out", "--rounds", "2", "--memory-limit", "2kB", "--json")
    assert main(arguments) == 0

    largest = json.loads(capsys.readouterr().out)["largest"]
    assert 1 < largest["size"] < 100
    assert largest["needed"] <= 0.9 * 2000
    assert all(needed is not None for _, needed in largest["passes"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--device", "cuda:7"), "no device"),
        (("--device", "abacus"), "no device"),
        (("--margin", "1"), "margin"),
        (("--memory-limit", "-1"), "bytes"),
        (("--memory-limit", "3"), "Not even one sample"),
        (("--threads", "0"), "threads"),
        (("--largest", "2", "--rounds", "1"), "at least 3 sizes"),
    ],
)
def test_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], says: str
) -> None:
    assert main(profile(tmp_path / "out", *more)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("precious")

    assert main(profile(tmp_path, *QUICK)) == 2
    assert "not an empty folder" in capsys.readouterr().err
