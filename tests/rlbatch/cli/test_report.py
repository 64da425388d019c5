"""`rlbatch report` and `rlbatch replay`: files, exit codes and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlbatch.cli import main
from tests.rlbatch.inspect.made import EXAMPLE, LOGS


def test_a_page_is_written_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "report.html"

    assert main(["report", str(EXAMPLE), str(LOGS / "live"), "-o", str(page)]) == 0
    assert "2 runs with 45 lines" in capsys.readouterr().out
    first = page.read_text()
    assert main(["report", str(EXAMPLE), "-o", str(page), "--title", "Another"]) == 0
    assert page.read_text() != first
    assert "<h1>Another</h1>" in page.read_text()


def test_other_files_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "thesis.html"
    page.write_text("precious")

    assert main(["report", str(EXAMPLE), "-o", str(page)]) == 2
    assert "is no page of rlbatch" in capsys.readouterr().err
    assert page.read_text() == "precious"
    assert main(["report", str(EXAMPLE), "-o", str(tmp_path)]) == 2


def test_a_benchmarks_folder_gives_its_tables(tmp_path: Path) -> None:
    bench = tmp_path / "bench"
    task = Path(__file__).parents[2] / "agents" / "evaluate" / "cheap_task.py"
    command = ["bench", "--task", f"{task}:make", "--policy", "fixed", "goodput", "--seeds", "2"]
    assert main([*command, "--out", str(bench)]) == 0
    page = tmp_path / "report.html"

    assert main(["report", str(bench), str(EXAMPLE), "-o", str(page)]) == 0

    text = page.read_text()
    assert "Benchmark bench" in text
    assert 'id="charts"' in text
    assert main(["report", str(bench), "-o", str(page)]) == 0
    assert 'id="charts"' not in page.read_text()


@pytest.mark.slow
def test_the_demonstrations_runs_of_the_first_seed_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, page = tmp_path / "bench", tmp_path / "report.html"
    task = Path(__file__).parents[2] / "agents" / "evaluate" / "cheap_task.py"
    command = ["demo", "--task", f"{task}:make", "--policy", "fixed", "--seeds", "2"]
    assert main([*command, "--start", "1", "--jobs", "1", "--out", str(bench)]) == 0
    capsys.readouterr()

    assert main(["report", str(bench), "-o", str(page)]) == 0

    told = capsys.readouterr()
    assert "2 runs with" in told.out
    assert "4 logged runs, and those of the first seed are drawn" in told.err
    text = page.read_text()
    assert 'id="charts"' in text
    assert "Benchmark bench" in text
    assert "<h1>bench</h1>" in text
    assert '"name": "fixed"' in text.replace('":"', '": "')

    for number in range(11):
        shutil.copytree(EXAMPLE, tmp_path / "more" / f"run{number}")
    assert main(["report", str(bench), str(tmp_path / "more"), "-o", str(page)]) == 0
    told = capsys.readouterr()
    assert "11 runs with" in told.out
    assert "none of them is drawn" in told.err
    (bench / "runs" / "broken").mkdir()
    (bench / "runs" / "broken" / "run.json").write_text("[")
    assert main(["report", str(bench), "-o", str(page)]) == 0
    assert "2 runs with" in capsys.readouterr().out


@pytest.mark.slow
def test_figures_beside_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["report", str(EXAMPLE), "-o", str(tmp_path / "r.html")]

    assert main([*arguments, "--figures", str(tmp_path / "figures")]) == 0
    assert (tmp_path / "figures" / "all.svg").is_file()


def test_too_many_runs_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(13):
        shutil.copytree(EXAMPLE, tmp_path / f"run{number}")

    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 2
    assert "cannot be told apart" in capsys.readouterr().err
    assert main(["report", "nowhere", "-o", str(tmp_path / "r.html")]) == 2
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("folder", [EXAMPLE, LOGS / "live", LOGS / "ddp", LOGS / "keras"])
def test_the_recorded_policy_repeats_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(folder)]) == 0
    assert "the same decisions throughout" in capsys.readouterr().out


def test_where_another_policy_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(EXAMPLE), "--policy", "fixed"]) == 0
    shown = capsys.readouterr().out
    assert "the first at step 1 (4 samples)" in shown

    assert main(["replay", str(EXAMPLE), "--policy", "goodput", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 17
    assert rows[0]["recorded_batch_size"] == 32
    assert not rows[0]["same"]


def test_a_policy_that_does_not_repeat_itself_is_a_failure(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "log")
    head = json.loads((EXAMPLE / "run.json").read_text())
    (tmp_path / "log" / "run.json").write_text(json.dumps({**head, "policy": "goodput"}))

    assert main(["replay", str(tmp_path / "log")]) == 1


def test_replay_of_nothing(tmp_path: Path) -> None:
    assert main(["replay", "nowhere"]) == 2
    assert main(["replay", str(EXAMPLE), "--policy", "no-such"]) == 2
