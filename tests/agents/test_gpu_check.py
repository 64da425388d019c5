"""The check of a GPU, rehearsed on the CPU: every part runs, and nothing counts as passed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlbatch.agents.gpu.language_data import Text, Windows
from rlbatch.agents.gpu.language_job import PLAIN, LanguageJob, train
from rlbatch.agents.gpu.language_runs import ARMS, plan, said
from rlbatch.agents.gpu.parts import PARTS, seconds_of
from rlbatch.agents.gpu.report import NEEDS_CUDA, Report, as_markdown
from rlbatch.envs.profiles import DeviceProfile
from rlbatch.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "check_gpu.py"
CPU = torch.device("cpu")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is of machines without a GPU")
def test_every_part_is_rehearsed(tmp_path: Path) -> None:
    # The minutes are no measure of a rehearsal: a busy machine takes its time.
    ended = run("--out", str(tmp_path), "--device", "cpu", "--tiny", "--minutes", "60")
    log = (tmp_path / "log.txt").read_text()
    assert ended.returncode == 0, ended.stdout + ended.stderr + log
    found = {part.name: read(tmp_path / f"{part.name}.json") for part in PARTS}
    checks = [row for content in found.values() for row in content["tables"].get("checks", [])]
    assert checks
    assert {row["result"] for row in checks} == {NEEDS_CUDA}
    tables = {name: content["tables"] for name, content in found.items()}
    assert {row["loop"] for row in tables["waiting"]["calls a step, by the profiler"]} == {
        *("plain", "step", "measured", "decision")
    }
    assert len(tables["waiting"]["waits of a run"]) == 2
    assert {row["part"] for row in tables["overhead"]["overhead"]} >= {"step", "measured", "run"}
    for content in found["profiles"]["values"].values():
        DeviceProfile.from_json(json.dumps(content["profile"]))
    assert len(tables["features"]["runs"]) == 4
    runs = tables["language-model"]["runs"]
    assert [row["batch size"] for row in runs] == list(ARMS)
    assert [row["samples"] for row in runs] == [64, 64, 64, 64, 64, 40]
    summary = (tmp_path / "summary.md").read_text()
    assert [f"## {part.name}" in summary for part in PARTS] == [True] * len(PARTS)
    assert len(list(tmp_path.iterdir())) == len(PARTS) + 2


@pytest.mark.slow
def test_a_part_without_time_is_stopped_and_the_next_one_runs(tmp_path: Path) -> None:
    # 9 s in all, of which 5 are kept back: the first part gets 90 / 60 = 1.5 of them.
    ended = run(
        *("--out", str(tmp_path), "--device", "cpu", "--tiny", "--minutes", "0.15"),
        *("--parts", "tests", "waiting"),
    )
    assert ended.returncode == 1
    summary = (tmp_path / "summary.md").read_text()
    assert summary.count("This part") == 2
    assert "stopped after 2 s; what it had found by then is here" in summary
    assert summary.index("## tests") < summary.index("## waiting")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    ended = run("--out", str(tmp_path / "out"))
    assert ended.returncode == 2
    assert "--device cpu --tiny" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_the_last_part_gets_what_is_left() -> None:
    assert seconds_of(PARTS[0], 500.0, 1.0) == PARTS[0].seconds
    assert seconds_of(PARTS[0], 500.0, 0.5) == PARTS[0].seconds / 2
    assert seconds_of(PARTS[0], 7.0, 1.0) == 7.0
    assert seconds_of(PARTS[-1], 400.0, 1.0) == 400.0
    assert sum(part.seconds for part in PARTS) <= 9 * 60


def test_a_report_is_on_the_disk_with_every_row(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    report = Report(path, "part", CPU)
    report.add("rows", {"size": 4, "loss": float("nan")})
    assert read(path)["tables"] == {"rows": [{"size": 4, "loss": "nan"}]}
    report.add("rows", {"size": 8, "seconds": 0.12345678})

    def fails() -> None:
        raise ValueError("a | reason")

    report.experiment("works", lambda: report.check("fine", True, "so it is"))
    report.experiment("does not", fails)
    report.check("there", None)
    content = read(path)
    results = {row["check"]: row["result"] for row in content["tables"]["checks"]}
    assert results == {"fine": "passed", "does not": "failed", "there": NEEDS_CUDA}
    page = as_markdown(content)
    assert "| size | loss | seconds |\n|---|---|---|\n| 4 | nan |  |\n| 8 |  | 0.1235 |" in page
    assert "a / reason" in page


def text() -> Text:
    content = torch.arange(4000, dtype=torch.int64).remainder(7).to(torch.uint8)
    return Text(content, content[:1000], 1)


def job(**values: Any) -> LanguageJob:
    sizes = {"width": 8, "heads": 2, "layers": 1, "length": 8, "batch_size": 4, "validation": 8}
    return LanguageJob(text(), **{**sizes, "samples": 64, "precise": True, **values})


def test_windows_are_of_the_text_and_shifted_by_one() -> None:
    windows = Windows(text().train, length=5, samples=9, seed=1)
    assert len(windows) == 9
    for window in windows.__getitems__([0, 3, 8]):
        assert torch.equal(window.diff().remainder(7), torch.ones(5, dtype=torch.int64))
    assert torch.equal(windows[3], windows.__getitems__([3])[0])


def test_the_fixed_policy_is_the_plain_loop() -> None:
    plain, fixed = train(job(), PLAIN, 0), train(job(), "fixed", 0)
    assert (plain.val_loss, plain.steps, plain.samples) == (fixed.val_loss, 16, 64)
    assert (fixed.steps, fixed.samples, fixed.changes) == (16, 64, [])


def test_a_ramp_takes_the_same_samples_in_fewer_steps() -> None:
    run = train(job(samples=256), "ramp", 0)
    assert run.samples == 256
    assert [size for _, size in run.changes] == [8, 16]
    assert all(share >= least for (share, _), least in zip(run.changes, (0.5, 0.75), strict=True))
    assert run.steps < 64
    assert said(run.changes).startswith("8 from 5")


def test_the_schedule_warms_up_and_falls_to_a_tenth() -> None:
    one = job(samples=400)
    optimizer = one.optimizer(one.model(0))
    scheduler = one.schedule(optimizer)
    rates: list[float] = []
    for _ in range(one.steps):
        rates.append(optimizer.param_groups[0]["lr"] / one.learning_rate)
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert optimizer.param_groups[0]["lr"] / one.learning_rate == pytest.approx(0.1)


@pytest.mark.parametrize(("left", "seeds"), [(200.0, 2), (100.0, 1), (5.0, 1)])
def test_runs_fit_into_what_is_left(left: float, seeds: int) -> None:
    found, samples = plan(16, 0.01, left)
    assert found == seeds
    assert samples % 64 == 0
    assert samples // 16 * 0.01 * 4.6 * seeds <= max(left, 4.6)


def test_a_run_is_of_whole_steps() -> None:
    with pytest.raises(ConfigurationError, match="multiple of 4 samples, got 66"):
        job(samples=66)
