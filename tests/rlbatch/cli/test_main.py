"""The command line from outside: help, wrong use, and what happens when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rlbatch
from rlbatch.cli import command_names, main

CHEAP_FILE = Path(__file__).parents[2] / "agents" / "evaluate" / "cheap_task.py"
CHEAP = f"{CHEAP_FILE}:make"
COMMANDS = (
    *("demo", "tasks", "policies", "run", "bench", "train", "curves", "export", "join"),
    *("inspect", "report", "replay", "advise", "profile", "sweep"),
)
HEAVY = {"torch", "numpy", "stable_baselines3", "gymnasium", "matplotlib", "sklearn"}


def test_the_commands_are_there_in_a_sensible_order() -> None:
    assert command_names()[: len(COMMANDS)] == list(COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlbatch {rlbatch.__version__}\n"


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0

    shown = capsys.readouterr().out
    assert all(f"• {name}" in shown for name in command_names())
    assert "For example: rlbatch" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_shows_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    assert f"For example: rlbatch {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_is_folded_by_the_terminal_alone(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100000")
    assert main([name, "--help"]) == 0

    shown = capsys.readouterr().out
    assert "None" not in shown
    assert "(default: )" not in shown
    for line in shown.splitlines():  # each text ends where a sentence or its default does
        text = line.strip("│╭╰─ ")
        ends = text.endswith((".", ")", "options", "arguments")) or text.startswith(
            ("usage", "For")
        )
        assert ends or not text or text.startswith("-")


def test_a_wrong_number_is_told_of_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "somewhere", "--step", "abc"]) == 2
    assert "parsing --step: invalid literal for int()" in capsys.readouterr().err
    assert main(["bench", "--policy", "fixed", "--out", "o", "--suite", "abc"]) == 2
    told = capsys.readouterr().err
    assert "field:quick" in told
    assert "None" not in told


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["demo", "--help"]])
def test_the_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from rlbatch.cli import main; code = main(sys.argv[1:]);"
        "print(code, *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )

    code, *loaded = done.stderr.split()
    assert code == "0"
    assert "tyro" in loaded  # the probe sees what is loaded
    assert not HEAVY & set(loaded)


def folder_with_a_file(tmp_path: Path) -> str:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    return str(tmp_path / "mine")


WRONG = {
    "unknown command": (["bensh"], "Did you mean 'bench'"),
    "unknown task": (
        ["run", "--task", "digits-mpl", "--policy", "fixed", "--out", "new"],
        "'digits-mlp'",
    ),
    "missing task file": (
        ["run", "--task", "no.py:make", "--policy", "fixed", "--out", "new"],
        "there is no file",
    ),
    "missing function": (
        ["run", "--task", f"{CHEAP_FILE}:missing", "--policy", "fixed", "--out", "new"],
        "must define a function 'missing'",
    ),
    "unknown policy": (
        ["bench", "--task", CHEAP, "--policy", "godput", "--out", "new"],
        "Did you mean 'goodput'",
    ),
    "policy parameter": (
        ["run", "--task", CHEAP, "--policy", "goodput:speed=2", "--out", "new"],
        "goodput has no parameter 'speed'",
    ),
    "unknown profile": (
        ["run", "--task", CHEAP, "--policy", "fixed", "--profile", "gpu", "--out", "new"],
        "Unknown profile 'gpu'",
    ),
    "objective": (
        ["run", "--task", CHEAP, "--policy", "fixed", "--objective", "fast", "--out", "new"],
        "budget=COST",
    ),
    "start": (
        ["bench", "--task", CHEAP, "--policy", "fixed", "--start", "0", "--out", "new"],
        "positive multiples",
    ),
    "no policies": (["bench", "--task", CHEAP, "--out", "new", "--policy"], "at least one"),
    "repeated option": (
        ["bench", "--task", CHEAP, "--policy", "fixed", "--policy", "goodput", "--out", "new"],
        "--policy is given twice",
    ),
    "jobs": (
        ["bench", "--task", CHEAP, "--policy", "fixed", "--jobs", "0", "--out", "new"],
        "jobs must be at least 1",
    ),
    "seeds": (["demo", "--seeds", "0", "--policy", "fixed", "--out", "new"], "at least 1"),
    "steps": (
        ["run", "--task", CHEAP, "--policy", "fixed", "--max-steps", "0", "--out", "new"],
        "max_steps must be at least 1",
    ),
    "missing log": (["inspect", "nowhere"], "There is no nowhere"),
    "last": (["inspect", "nowhere", "--last", "0"], "--last must be at least 1"),
    "recipe": (["train", "--recipe", "smok", "--out", "new"], "Did you mean 'smoke'"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_use_is_told_in_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == 2

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("rlbatch: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["bench", "--tusk", "digits-mlp"], "--tusk"),
        (["run", "--task", CHEAP], "--out"),
        (["run", "--task", CHEAP, "--out", "new", "--seed", "one"], "--seed"),
        (["run", "--task", CHEAP, "--out", "new", "--lr-coupling", "cube"], "--lr-coupling"),
    ],
)
def test_options_that_cannot_be_read_are_named(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2

    shown = capsys.readouterr()
    assert word in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--task", CHEAP, "--policy", "fixed"],
        ["bench", "--task", CHEAP, "--policy", "fixed"],
        ["demo", "--policy", "fixed", "--seeds", "1"],
        ["train", "--recipe", "smoke"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_existing_files_are_never_destroyed(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(folder_with_a_file(tmp_path))

    assert main([*arguments, "--out", str(folder)]) == 2
    assert main([*arguments, "--out", str(folder / "thesis.tex")]) == 2

    assert "Traceback" not in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    assert (folder / "thesis.tex").read_text() == "precious"


def test_a_task_that_raises_is_a_failed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--task", f"{CHEAP_FILE}:broken", "--policy", "fixed"]

    assert main([*arguments, "--out", str(tmp_path / "new")]) == 1
    assert "no data here" in capsys.readouterr().err


def bench(out: Path, *more: str) -> list[str]:
    program = [sys.executable, "-m", "rlbatch", "bench", "--task", CHEAP, "--policy", "goodput"]
    return [*program, "--seeds", "300", "--out", str(out), *more]


def wait_for_results(process: subprocess.Popen[str], path: Path) -> None:
    while process.poll() is None and not (path.exists() and b"\n" in path.read_bytes()):
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_with_one_sentence_and_keeps_the_results(tmp_path: Path, jobs: str) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        bench(out, "--jobs", jobs),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # A test run in the background of a script ignores SIGINT, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    wait_for_results(process, out / "results.jsonl")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    shown, errors = process.communicate()

    assert process.returncode == 130
    assert shown == ""
    *progress, sentence = errors.splitlines()
    assert sentence == "rlbatch: Stopped. What was finished is kept."
    assert all(line.startswith("runs: ") for line in progress)  # one every ten seconds
    assert (out / "results.jsonl").read_bytes().count(b"\n") >= 1


def test_python_dash_m_runs_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlbatch", "--version"], capture_output=True, text=True, check=True
    )

    assert done.stdout == f"rlbatch {rlbatch.__version__}\n"
