"""What `rlbatch train --task` refuses, and the help of the commands around it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlbatch.agents.own_tasks.plan import Plan
from rlbatch.agents.recipes import RECIPES
from rlbatch.cli import main
from rlbatch.cli._own_tasks import left_text
from rlbatch.policy.file import load_policy
from rlbatch.testing.generators import random_signals

TASK = ["train", "--task", "digits-mlp"]


def test_the_help_lists_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"`{name}`" in shown or name in shown for name in RECIPES)
    assert "--task" in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--recipe", "smoke"], "--recipe is for a training by a recipe"),
        (["--curves", "here"], "--curves is for a training by a recipe"),
        (["--device", "cpu"], "--device is for a training by a recipe"),
        (["--minutes", "0"], "positive --minutes"),
        (["--jobs", "0"], "positive --minutes and --jobs"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--profile", "wall"], "rlbatch profile"),
        (["--start-from", "nowhere.safetensors"], "there is no such policy file"),
        (["--from-scratch", "--start-from", "x.safetensors"], "Leave one of the two out"),
        (["--resume"], "There is nothing to resume"),
    ],
)
def test_wrong_use_is_refused_and_writes_nothing(
    more: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TASK, *more, "--out", "out"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_time_that_is_over_is_said_to_be() -> None:
    assert left_text(75.2) == "1:15 left"
    assert left_text(0.0).startswith("the time is up")


@pytest.mark.parametrize(
    "more", [["--minutes", "3"], ["--from-scratch"], ["--start", "1"], ["--lr-coupling", "none"]]
)
def test_options_for_tasks_are_refused_without_one(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["train", "--recipe", "smoke", "--out", str(out), *more]) == 2
    assert f"{more[0]} is for a training on tasks of your own" in capsys.readouterr().err
    assert not out.exists()


def test_a_training_goes_on_with_what_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same options may be given again, with --resume, and others may not."""
    begun: list[Plan] = []

    def stop(plan: Plan, *_: object) -> None:
        begun.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr("rlbatch.cli._own_tasks.run", stop)
    options = ["--out", str(tmp_path / "out"), "--seeds", "2", "--start", "0.5", "1"]
    assert main([*TASK, *options]) == 130
    assert main([*TASK, *options, "--resume", "--minutes", "20"]) == 130
    assert main(["train", *options[:2], "--resume"]) == 130
    assert begun[0] == begun[1] == begun[2]
    capsys.readouterr()
    for more in (["--seeds", "3"], ["--from-scratch"], ["--profile", "accelerator-512"]):
        assert main(["train", *options[:2], "--resume", *more]) == 2
        assert f"for which {more[0]} was another" in " ".join(capsys.readouterr().err.split())
    assert len(begun) == 3


def test_a_folder_with_something_in_it_is_not_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "training.json").write_text("{}")
    assert main([*TASK, "--out", str(tmp_path)]) == 2
    assert "already holds a training" in capsys.readouterr().err
    assert main([*TASK, "--out", str(tmp_path), "--resume"]) == 2
    assert "is damaged" in capsys.readouterr().err
    (tmp_path / "training.json").rename(tmp_path / "notes.txt")
    assert main([*TASK, "--out", str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_join_averages_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlbatch.agents.own_tasks.rule_networks import size_policy
    from rlbatch.policy.card import PolicyCard
    from rlbatch.policy.file import save_policy

    actions, card = (-1.0, 0.0, 1.0), PolicyCard(results={"mine": 1})
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for goal, path in enumerate(files):
        save_policy(path, size_policy(goal, actions, card), card)
    out = tmp_path / "both.safetensors"
    assert main(["join", *map(str, files), "-o", str(out)]) == 0
    seen = np.random.default_rng(0).uniform(-1, 1, (50, 79)).astype(np.float32)
    signals = random_signals((50,), np.random.default_rng(0))

    def probabilities(path: Path) -> np.ndarray:
        policy = load_policy(path)
        return np.asarray(
            policy.decide(seen, signals, policy.initial_state((50,)))[0].probabilities
        )

    mean = (probabilities(files[0]) + probabilities(files[1])) / 2
    np.testing.assert_allclose(probabilities(out), mean, atol=1e-6)
    assert load_policy(out).card.results == {}
    capsys.readouterr()
    assert main(["join", *map(str, files), "-o", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["join", str(files[0]), "-o", str(tmp_path / "new.safetensors")]) == 2
    assert "two or more" in capsys.readouterr().err


@pytest.mark.slow
def test_an_export_says_what_it_has_to_say_and_no_more(tmp_path: Path) -> None:
    """TensorFlow, which TensorBoard would import where it is installed, greets at length."""
    (tmp_path / "model.zip").write_text("no zip")
    command = [sys.executable, "-m", "rlbatch", "export", "model.zip", "-o", "p.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("rlbatch: model.zip")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_curves_refuses_what_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["curves", "--out", str(tmp_path / "c"), "--random", "0", "--random-long", "0"]
    assert main([*arguments, "--task", "digit-mlp", "--random-transformer", "0"]) == 2
    assert "Did you mean 'digits-mlp'" in capsys.readouterr().err
    assert main([*arguments, "--seeds", "0"]) == 2
    assert "seeds must be at least 1" in capsys.readouterr().err
    assert main([*arguments[:3], "--random", "-5"]) == 2
    assert "no less than 0 tasks of random, got -5" in capsys.readouterr().err
    assert main([*arguments, "--task", "my_task.py:make"]) == 2
    assert "`rlbatch train --task` makes what it needs" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "c").exists()


def test_a_wrong_task_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cheap = Path(__file__).parents[2] / "agents" / "evaluate" / "cheap_task.py"
    shape, unpacking = tmp_path / "my task.py", tmp_path / "another task.py"
    shape.write_text(cheap.read_text().replace(".mean()", ""))
    unpacking.write_text(cheap.read_text().replace("x, y = batch", "x, y, z = batch"))
    before = sorted(tmp_path.iterdir())
    for task, code, message in (
        (shape, 2, "must return a scalar tensor"),
        (unpacking, 1, "another task.py, line "),
    ):
        assert main(["train", "--task", f"{task}:make", "--out", str(tmp_path / "out")]) == code
        assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
