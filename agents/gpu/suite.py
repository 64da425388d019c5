"""The test suite's part that needs a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from rlbatch.agents.gpu.report import PartSettings, Report

TESTS = Path(__file__).resolve().parents[2] / "tests"
_MARK = "pytest.mark.gpu"
_OUTCOME = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)
_REASON = re.compile(r"^(?:FAILED|ERROR) (tests/\S+::.+?) - (.*)$", re.MULTILINE)


def run(settings: PartSettings, report: Report) -> None:
    """Run the tests with the mark `gpu` and note each outcome.

    Only files that hold such a test are collected: others may need packages that are not here.
    Warnings are shown instead of raised, so that one of a newer torch hides nothing.
    """
    if not TESTS.is_dir():
        report.note("No tests here: this is an installation, not a checkout.")
        return
    files = [
        str(path.relative_to(TESTS.parent))
        for path in sorted(TESTS.rglob("test_*.py"))
        if _MARK in path.read_text(encoding="utf-8")
    ]
    code, output = _pytest(files, settings.seconds - 3.0)
    print(output, flush=True)
    reasons = dict(_REASON.findall(output))
    outcomes = _OUTCOME.findall(output)
    last = (output.strip().splitlines() or ["no output"])[-1].strip("= ")
    if not settings.on_cuda:
        report.check("tests of the mark gpu", None, last)
        if code not in (0, 5):
            raise RuntimeError(f"pytest ended with exit code {code}: {last}")
        return
    for name, outcome in outcomes:
        report.check(name, outcome == "PASSED", reasons.get(name, "")[:200])
    fine = code == 0 and bool(outcomes) and all(outcome == "PASSED" for _, outcome in outcomes)
    report.check("all tests of the mark gpu", fine, last)


def _pytest(files: list[str], seconds: float) -> tuple[int | None, str]:
    """Return pytest's exit code, None where it was stopped, and what it has said until then."""
    options = ["-m", "gpu", "-v", "-ra", "-p", "no:cacheprovider", "-W", "default", "--tb=short"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    try:
        ended = subprocess.run(
            command,
            cwd=TESTS.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=max(seconds, 1.0),
            check=False,
        )
    except subprocess.TimeoutExpired as stopped:
        return None, (stopped.stdout or b"").decode(errors="replace") + "\nstopped: out of time"
    return ended.returncode, ended.stdout.decode(errors="replace")
