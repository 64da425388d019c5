"""Policies of other packages, found in real installed distributions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from rlbatch.cli import main
from rlbatch.errors import ConfigurationError, UnknownNameError
from rlbatch.policy.plugins import find_plugins, provider
from rlbatch.policy.registry import policy_names, resolve_policy
from rlbatch.testing import random_run
from rlbatch.testing.policy_contract import play

CHEAP_FILE = Path(__file__).parents[2] / "agents" / "evaluate" / "cheap_task.py"

RULES = '''
    from dataclasses import dataclass

    from rlbatch.errors import ConfigurationError
    from rlbatch.policy.base import Decision


    @dataclass(frozen=True)
    class Every:
        """Doubles at every so many decisions.

        More about it.
        """

        count: int = 3
        log2_change: float = 1.0

        needs_gradient_noise = False

        def __post_init__(self):
            if self.count < 1:
                raise ConfigurationError(f"Every.count must be at least 1; got {self.count}.")

        def initial_state(self, shape=()):
            return 0

        def decide(self, observation, signals, state):
            change = self.log2_change if (state + 1) % self.count == 0 else 0.0
            return Decision(change, reasons=("every",)), state + 1


    def strict(count: int):
        return Every(count)

    def fails(count: int = 1):
        raise KeyError("license")

    def number(count: int = 1):
        return 42

    class Forgetful:
        needs_gradient_noise = False

    forty_two = 42
'''

POINTS = {
    "every": "acme_rules:Every",
    "strict": "acme_rules:strict",
    "fails": "acme_rules:fails",
    "number": "acme_rules:number",
    "the-class": "acme_rules:Forgetful",
    "no-callable": "acme_rules:forty_two",
    "gone": "acme_rules:Gone",
    "no-module": "acme_rules.nowhere:X",
    "crash": "acme_crash:X",
    "syntax": "acme_syntax:X",
    "nonsense": "not a reference!",
    "goodput": "acme_rules:Every",
    "default": "acme_rules:Every",
}
"""Names and what they are announced as."""


def install(
    folder: Path, package: str = "acme-rules", points: dict[str, str] | None = None
) -> Path:
    """Write modules and metadata as an installer does."""
    folder.mkdir(exist_ok=True)
    (folder / "acme_rules.py").write_text(dedent(RULES))
    (folder / "acme_crash.py").write_text('raise RuntimeError("no graphics card")\n')
    (folder / "acme_syntax.py").write_text("def x(\n")
    info = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = [f"{name} = {target}" for name, target in (points or POINTS).items()]
    (info / "entry_points.txt").write_text("\n".join(["[rlbatch.policies]", *lines, ""]))
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = install(tmp_path / "site")
    monkeypatch.syspath_prepend(folder)
    for name in ("acme_rules", "acme_crash", "acme_syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


@pytest.mark.usefixtures("installed")
def test_a_policy_of_another_package_is_resolved_with_its_parameters() -> None:
    run = random_run((), np.random.default_rng(0), 6)
    for spec, changes in (
        ("every", [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]),
        ("every:2", [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]),
        ("every:count=2,log2_change=-1.5", [0.0, -1.5, 0.0, -1.5, 0.0, -1.5]),
        ("strict:1", [1.0] * 6),
    ):
        assert [d.log2_change for d in play(resolve_policy(spec), run, ())] == changes


@pytest.mark.usefixtures("installed")
def test_its_names_are_known_and_offered() -> None:
    assert {"every", "crash", "goodput"} <= set(policy_names())
    with pytest.raises(UnknownNameError, match="Did you mean 'every'"):
        resolve_policy("evry:2")
    assert provider(find_plugins()["every"]) == "acme-rules 1.2"


@pytest.mark.usefixtures("installed")
def test_it_cannot_take_the_place_of_a_built_in_policy() -> None:
    assert type(resolve_policy("goodput")).__module__ == "rlbatch.agents.rules.goodput"
    with pytest.raises(ConfigurationError, match="default policy takes no parameters"):
        resolve_policy("default:count=2")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("every:0", r"Every\.count must be at least 1; got 0"),
        ("every:size=3", r"every has no parameter 'size'\. every accepts count \(int, default 3\)"),
        ("strict", r"strict needs a value for count, as in strict:count="),
        ("fails", r"'fails' of acme-rules 1\.2 .* KeyError: 'license'.* remove that package"),
        ("number", r"'number' of acme-rules 1\.2 .*rlbatch\.Policy.* got 42"),
        ("the-class", r"'the-class' of acme-rules 1\.2 .*rlbatch\.Policy.* got .*Forgetful"),
        ("no-callable", r"'no-callable' of acme-rules 1\.2 .* function .* got 42"),
        ("gone", r"'gone' of acme-rules 1\.2 \(acme_rules:Gone\) cannot be loaded"),
        ("no-module", r"cannot be loaded \(ModuleNotFoundError: .*acme_rules\.nowhere"),
        ("crash", r"cannot be loaded \(RuntimeError: no graphics card\)"),
        ("syntax", r"cannot be loaded \(SyntaxError: "),
        ("nonsense", r"\(not a reference!\) cannot be loaded"),
    ],
)
def test_whatever_is_wrong_with_it_is_one_error_that_names_it(spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve_policy(spec)


def test_two_packages_with_one_name(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"every": "acme_rules:strict", "fails": "acme_rules:fails"}
    monkeypatch.syspath_prepend(install(tmp_path / "other", "other-rules", points))
    with pytest.raises(ConfigurationError, match=r"announced more than once.*acme-rules.*other-ru"):
        resolve_policy("every")
    with pytest.raises(ConfigurationError, match="KeyError: 'license'"):
        resolve_policy("fails")  # the same thing twice is no contradiction


def test_unreadable_metadata_is_an_error_and_touches_no_built_in_policy(
    installed: Path,
) -> None:
    (info,) = installed.glob("*.dist-info")
    (info / "entry_points.txt").write_text("[rlbatch.policies]\nwithout a value\n")
    with pytest.raises(ConfigurationError, match=r"entry points .*cannot be read.*pip check"):
        resolve_policy("every")
    resolve_policy("fixed:8")


@pytest.mark.usefixtures("installed")
def test_the_command_line_lists_it_and_says_what_is_broken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["policies", "--json"]) == 0
    shown = capsys.readouterr()
    rows: dict[str, Any] = {row["policy"]: row for row in map(json.loads, shown.out.splitlines())}
    assert rows["every"]["parameters"] == "count=3, log2_change=1.0"
    assert rows["every"]["what"] == "Doubles at every so many decisions. [acme-rules 1.2]"
    assert rows["strict"]["parameters"] == "count"
    assert rows["crash"]["what"] == "(cannot be loaded) [acme-rules 1.2]"
    assert "acme" not in rows["goodput"]["what"]

    notes = shown.err.splitlines()
    for name in ("gone", "no-module", "crash", "syntax", "nonsense", "no-callable"):
        assert sum(f"Policy '{name}'" in note for note in notes) == 1
    for name in ("goodput", "default"):
        assert sum(f"'{name}' of acme-rules 1.2 is not used" in note for note in notes) == 1
    assert all(note.startswith("rlbatch: ") for note in notes)
    assert len(notes) == 8


@pytest.mark.slow
def test_it_runs_from_the_command_line(tmp_path: Path) -> None:
    site, out = install(tmp_path / "site"), tmp_path / "out"
    arguments = ["run", "--task", f"{CHEAP_FILE}:make", "--policy", "every:2", "--out", str(out)]
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-m", "rlbatch", *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    lines = [json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines()]
    asked = [line["requested_log2_change"] for line in lines if line["event"] == "decision"]
    assert asked[:4] == [0.0, 1.0, 0.0, 1.0]
