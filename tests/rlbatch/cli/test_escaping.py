"""What a file from elsewhere holds does not reach the terminal as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from rlbatch.cli import _shared, main
from rlbatch.cli.bench import print_summaries
from rlbatch.policy.file import save_policy
from rlbatch.testing import random_policy

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b]52;c;eA==\x07\x9b31m\u202e"
# What rich itself writes where it takes the output for a terminal: colours and nothing else.
STYLES = re.compile(r"\x1b\[[0-9;]*m")


def is_harmless(printed: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in STYLES.sub("", printed))


@pytest.fixture
def evil_policy(tmp_path: Path) -> Path:
    """A policy file that claims to be of a version whose name is an attack."""
    path = tmp_path / "policy.safetensors"
    save_policy(path, random_policy(np.random.default_rng(0), hidden=(4,)))
    with safe_open(path, framework="np") as opened:
        texts: dict[str, str] = dict(opened.metadata())
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    texts |= {"schema_version": json.dumps(EVIL), "rlbatch_version": json.dumps(EVIL)}
    save_file(tensors, path, texts)
    return path


@pytest.mark.parametrize("command", ["run", "bench", "train"])
@pytest.mark.parametrize("traceback", ["", "1"])
def test_a_policy_file_cannot_talk_to_the_terminal(
    command: str,
    traceback: str,
    evil_policy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RLBATCH_TRACEBACK", traceback)
    arguments = {
        "run": ["run", "--task", "char-lm", "--policy", str(evil_policy)],
        "bench": ["bench", "--task", "char-lm", "--policy", str(evil_policy)],
        "train": ["train", "--recipe", "smoke", "--start-from", str(evil_policy)],
    }
    assert main([*arguments[command], "--out", str(tmp_path / "out")]) == 2

    printed = capsys.readouterr()
    assert "\\x1b]0;owned\\x07" in printed.err
    assert is_harmless(printed.out + printed.err)
    assert ("Traceback" in printed.err) == bool(traceback)


def test_names_of_policies_and_files_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / f"odd{EVIL.replace('/', '')}.safetensors"
    assert main(["run", "--task", "char-lm", "--policy", str(odd), "--out", "new"]) == 2
    assert main(["run", "--task", EVIL, "--policy", "fixed", "--out", "new"]) == 2

    printed = capsys.readouterr()
    assert printed.err.count("\\x1b") >= 2
    assert is_harmless(printed.out + printed.err)


def test_tables_and_remarks_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    _shared.print_table(EVIL, [EVIL], [[EVIL], ["[bold]"]], text=[EVIL], caption=EVIL)
    _shared.note(EVIL)
    _shared.say(EVIL)

    printed = capsys.readouterr()
    assert printed.out.count("owned") == 5
    assert "[bold]" in printed.out
    assert is_harmless(printed.out + printed.err)


def test_results_of_a_benchmark_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    common: dict[str, Any] = {
        "lr_coupling": "sqrt",
        "profile": "cpu",
        "objective": "target",
        "start_batch_size": 8,
        "reached": True,
        "reference_cost": 1.0,
        "default_cost": 1.5,
        "start_cost": 1.5,
        "ratio": 1.2,
        "reference_batch_size": 8,
    }
    rows = [
        {**common, "task": f"{EVIL}{task}", "policy": EVIL + policy, "seed": seed, "cost": 1.2}
        for task in "ab"
        for policy in "cd"
        for seed in range(2)
    ]
    print_summaries(rows)

    printed = capsys.readouterr()
    assert printed.out.count("owned") > 4
    assert is_harmless(printed.out)
