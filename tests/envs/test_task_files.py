"""What a task from a file consists of, compared with what a fresh Python process loads for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlbatch.envs.task import resolve_task
from rlbatch.envs.task_files import file_digests, imported_files, task_file
from rlbatch.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
CHEAP = (ROOT / "tests" / "agents" / "evaluate" / "cheap_task.py").read_text()

FILES = {
    "job.py": f"""
import json, torch, os.path
import qq_direct
from qq_package.deep import leaf
from qq_package import sibling as other
import importlib
if True:
    importlib.import_module("qq_literal")
{CHEAP.replace("from __future__ import annotations", "")}
def lazy():
    import qq_lazy
    return make()
def by_name():
    for end in ("named",):
        importlib.import_module("qq_" + end)
    return make()
""",
    "qq_direct.py": "from qq_indirect import *",
    "qq_indirect.py": "import qq_direct",
    "qq_literal.py": "",
    "qq_lazy.py": "",
    "qq_named.py": "",
    "qq_unused.py": "",
    "qq_package/__init__.py": "from . import started",
    "qq_package/started.py": "",
    "qq_package/sibling.py": "from .deep import twig",
    "qq_package/deep/__init__.py": "",
    "qq_package/deep/leaf.py": "from ..cousin import x",
    "qq_package/deep/twig.py": "",
    "qq_package/cousin.py": "x = 1",
    "qq_package/unused.py": "",
}
# Read from the files above by hand.
IMPORTED = {name for name in FILES if "unused" not in name} - {"job.py", "qq_named.py"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in [name for name in sys.modules if name.startswith("qq_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_imports_are_found_through_packages_and_functions(folder: Path) -> None:
    found = {
        path.relative_to(folder).as_posix() for path in imported_files(folder / "job.py").values()
    }
    assert found == IMPORTED


def test_a_process_that_runs_the_file_loads_no_other(folder: Path) -> None:
    program = (
        "import sys, runpy; runpy.run_path(sys.argv[1]);"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('qq_') and m.__file__))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder / "job.py"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{ROOT}:{folder}"},
    )
    loaded = {Path(name).relative_to(folder).as_posix() for name in done.stdout.split()}
    assert loaded == IMPORTED - {"qq_lazy.py"}  # it was not called


def test_each_file_is_named_with_its_content(folder: Path) -> None:
    spec = f"{folder / 'job.py'}:make"
    before = file_digests(spec)
    assert set(before) == {spec} | {f"{spec} imports {name}" for name in IMPORTED}

    (folder / "qq_package" / "cousin.py").write_text("x = 2")
    after = file_digests(spec)

    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{spec} imports qq_package/cousin.py"}


def test_what_is_imported_by_a_name_made_up_at_run_time_is_remembered(folder: Path) -> None:
    spec = f"{folder / 'job.py'}:by_name"
    resolve_task(spec)
    assert f"{spec} imports qq_named.py" in file_digests(spec)


def test_modules_on_the_search_path_count_and_installed_ones_do_not(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "qq_shared.py").write_text("")
    (folder / "job.py").write_text("import qq_shared, torch, numpy, json, sys, rlbatch.envs.task")
    monkeypatch.syspath_prepend(elsewhere)

    assert imported_files(folder / "job.py") == {"qq_shared": elsewhere / "qq_shared.py"}


def test_a_home_folder_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert task_file("~/job.py:make") == folder / "job.py"
    assert set(file_digests("~/job.py:make")) >= {"~/job.py:make"}
    assert task_file("digits-mlp") is None
    assert task_file("random:3") is None
    assert file_digests("~/nowhere.py:make") == {}


def test_a_file_that_cannot_be_read_as_python_imports_nothing(tmp_path: Path) -> None:
    for text in ("import (", "\0", "import a" + "." * 3):
        (tmp_path / "odd.py").write_text(text)
        assert imported_files(tmp_path / "odd.py") == {}


def test_two_tasks_whose_modules_have_one_name_are_not_mixed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    for name in ("job.py", "qq_direct.py"):
        (other / name).write_text(CHEAP if name == "qq_direct.py" else f"import qq_direct\n{CHEAP}")
    text = (other / "job.py").read_text().replace("from __future__ import annotations", "")
    (other / "job.py").write_text(text)
    resolve_task(f"{folder / 'job.py'}:make")

    with pytest.raises(ConfigurationError, match=r"qq_direct is .*loaded before under the same"):
        resolve_task(f"{other / 'job.py'}:make")
