"""What is said where an optional package is not installed, and that its extra then is enough.

Programs run in processes of their own from which packages are hidden, see `missing.py`.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlbatch.cli import command_names
from rlbatch.errors import MissingExtraError
from rlbatch.extras import EXTRAS, missing_extra, needs_extra
from tests.preloaded import Preloaded

ROOT = Path(__file__).parents[1]
CHEAP = f"{ROOT / 'tests' / 'agents' / 'evaluate' / 'cheap_task.py'}:make"
OPTIONAL = frozenset(module for modules in EXTRAS.values() for module in modules)
CLI_ONLY = ("inspect", "join", "policies", "replay", "report", "tasks")
INTEGRATIONS = {
    "keras": ("keras", "keras"),
    "lightning": ("lightning", "lightning"),
    "transformers": ("transformers", "transformers"),
    "accelerate": ("accelerate", "transformers"),
}


MISSING = ROOT / "tests" / "missing.py"
Hidden = frozenset[str] | set[str]


def without(hidden: Hidden, *command: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(MISSING), ",".join(sorted(hidden))]
    return subprocess.run(
        [*program, *command], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.fixture(scope="module")
def python() -> Iterator[Preloaded]:
    """What needs torch in any case runs where it is imported already; no optional package is."""
    with Preloaded("import torch") as python:
        yield python


def with_torch(
    python: Preloaded, hidden: Hidden, *command: str
) -> subprocess.CompletedProcess[str]:
    return python.run(MISSING.read_text(), ",".join(sorted(hidden)), *command, cwd=ROOT)


def requirements(extra: str) -> set[str]:
    """Names that an extra of pyproject.toml installs, with those of extras that it names."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names: set[str] = set()
    for requirement in declared["optional-dependencies"][extra]:
        inner = re.match(r"rlbatch\[(.+)\]", requirement)
        if inner is not None:
            names |= set().union(*(requirements(one) for one in inner[1].split(",")))
        else:
            names.add(re.split(r"[><=; ]", requirement)[0].replace("-cpu", ""))
    return names


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_table_is_what_pyproject_installs(extra: str) -> None:
    assert set(EXTRAS[extra].values()) == requirements(extra)


@pytest.mark.parametrize("hidden", ["tyro", "rich"])
@pytest.mark.parametrize("name", [*command_names(), ""])
def test_each_command_names_the_extra_that_it_needs(hidden: str, name: str) -> None:
    done = without({hidden}, "-m", "rlbatch", *filter(None, [name]))

    extra = "cli" if name in (*CLI_ONLY, "") else "train"
    assert done.stdout == ""
    assert done.stderr == (
        f"rlbatch: {hidden} is needed here and is not installed. "
        f"Run: pip install 'rlbatch[{extra}]'\n"
    )
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "package", "arguments"),
    [
        ("threadpoolctl", "threadpoolctl", ["run", "--task", CHEAP, "--out", "{}/new"]),
        ("sklearn", "scikit-learn", ["run", "--task", "digits-mlp", "--out", "{}/new"]),
        ("threadpoolctl", "threadpoolctl", ["bench", "--task", CHEAP, "--out", "{}/new"]),
        ("sklearn", "scikit-learn", ["demo", "--task", "digits-mlp", "--out", "{}/new"]),
        ("gymnasium", "gymnasium", ["train", "--recipe", "smoke", "--out", "{}/new"]),
        ("stable_baselines3", "stable-baselines3", ["train", "--recipe", "smoke", "--out", "{}/n"]),
    ],
)
def test_a_package_of_the_training_extra_is_named(
    hidden: str, package: str, arguments: list[str], python: Preloaded, tmp_path: Path
) -> None:
    policy = ["--policy", "fixed"] if arguments[0] in ("run", "bench") else []
    arguments = [argument.format(tmp_path) for argument in arguments]

    done = with_torch(python, {hidden}, "-m", "rlbatch", *arguments, *policy)

    assert done.stderr == (
        f"rlbatch: {package} is needed here and is not installed. "
        "Run: pip install 'rlbatch[train]'\n"
    )
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_tasks_are_listed_without_the_packages_of_their_data(python: Preloaded) -> None:
    done = with_torch(python, OPTIONAL - set(EXTRAS["cli"]), "-m", "rlbatch", "tasks", "--json")

    rows = done.stdout.splitlines()
    assert done.returncode == 0
    assert any('"digits-mlp", "samples": null' in row for row in rows)
    assert any('"char-lm", "samples": 9744' in row for row in rows)
    assert "digits-mlp" in done.stderr
    assert "scikit-learn is needed" in done.stderr


@pytest.mark.slow
def test_the_command_line_extra_is_enough_to_list_and_inspect(
    python: Preloaded, tmp_path: Path
) -> None:
    hidden = OPTIONAL - set(EXTRAS["cli"])
    log = tmp_path / "log"
    run = ["run", "--task", CHEAP, "--policy", "fixed", "--out", str(log)]
    assert with_torch(python, set(), "-m", "rlbatch", *run).returncode == 0

    for arguments in (["tasks"], ["policies"], ["inspect", str(log)], ["--help"]):
        done = without(hidden, "-m", "rlbatch", *arguments)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_training_extra_is_enough_for_the_other_commands(
    python: Preloaded, tmp_path: Path
) -> None:
    hidden = OPTIONAL - set(EXTRAS["train"])
    plain = ["--task", CHEAP, "--policy", "fixed"]
    for arguments in (
        ["run", *plain, "--out", str(tmp_path / "run")],
        ["bench", *plain, "--seeds", "1", "--out", str(tmp_path / "bench")],
        ["train", "--recipe", "smoke", "--out", str(tmp_path / "train")],
    ):
        done = with_torch(python, hidden, "-m", "rlbatch", *arguments)
        assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "bench").glob("*.png"))


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_an_integration_names_its_extra(name: str, python: Preloaded) -> None:
    package, extra = INTEGRATIONS[name]
    program = f"import rlbatch.integrations.{name}"

    done = with_torch(python, {name}, "-c", program)

    assert done.stderr.splitlines()[-1] == (
        f"rlbatch.errors.MissingExtraError: {package} is needed here and is not installed. "
        f"Run: pip install 'rlbatch[{extra}]'"
    )


@pytest.mark.slow
def test_a_framework_that_lacks_its_backend_names_the_backend(python: Preloaded) -> None:
    pytest.importorskip("keras")

    done = with_torch(python, {"tensorflow"}, "-c", "import rlbatch.integrations.keras")

    assert done.stderr.splitlines()[-1].startswith(
        "rlbatch.errors.MissingExtraError: tensorflow is needed here"
    )


def test_another_packages_failure_is_not_blamed_on_an_extra() -> None:
    unknown = ModuleNotFoundError("No module named 'mine'", name="mine")
    assert missing_extra(unknown) is None
    assert missing_extra(ImportError("cannot import name 'x'")) is None


def test_the_failing_import_stays_the_cause() -> None:
    expected = pytest.raises(MissingExtraError, match=r"thing.*rlbatch\[train\]")
    with expected as raised, needs_extra("train", "thing"):
        importlib.import_module("no_such_module_at_all")
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)
