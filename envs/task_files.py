"""Which files a task of the user's consists of: its own, and what that imports.

They are found by reading, not by what happens to be loaded: the same files give the same answer in
every process, and imports within functions count. Names that are made up while the task runs
cannot be read; what `resolve_task` sees loaded from the task's folder is remembered for them.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import rlbatch
from rlbatch.errors import ConfigurationError

_IMPORTERS = ("import_module", "__import__")
_seen: dict[Path, set[Path]] = {}


def task_file(spec: str) -> Path | None:
    """Return the file that a task's name stands for, or None for a built-in one.

    Args:
        spec: As for `resolve_task`; `~` stands for the home folder.
    """
    name, _, function = spec.rpartition(":")
    if not name.endswith(".py") or not function.isidentifier():
        return None
    path = Path(name).expanduser().resolve()
    return path if path.is_file() else None


def file_digests(spec: str) -> dict[str, str]:
    """Return what is compared of a task from a file: each file with a hash of its content.

    Args:
        spec: As for `resolve_task`. A built-in task has no files of its own.
    """
    path = task_file(spec)
    if path is None:
        return {}
    files = {*imported_files(path).values(), *_seen.get(path, ())} - {path}
    named = {f"{spec} imports {_shortened(file, path.parent)}": file for file in sorted(files)}
    return {name: _digest(file) for name, file in {spec: path, **named}.items()}


def imported_files(path: Path) -> dict[str, Path]:
    """Return the modules that a file imports, themselves or through others, with their files.

    Left out are Python's own, rlbatch's, and those of installed packages.

    Args:
        path: A Python file; modules are looked for beside it first, as for a script.
    """
    found: dict[str, Path] = {}
    to_read: list[tuple[str, Path]] = [("", path)]
    places = [str(path.parent), *sys.path]
    while to_read:
        module, file = to_read.pop()
        for name in _imports(file, module):
            for part, origin in _located(name, places):
                if part not in found and not _is_library(origin):
                    found[part] = origin
                    to_read.append((part, origin))
    return found


def remember_loaded(path: Path, before: set[str]) -> None:
    """Remember which modules of a task's folder were loaded while it was made.

    Args:
        path: The task's file.
        before: Names of the modules that were there before.
    """
    for name in sys.modules.keys() - before:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            origin = Path(file).resolve()
            if origin.is_relative_to(path.parent) and not _is_library(origin):
                _seen.setdefault(path, set()).add(origin)


def refuse_namesakes(spec: str, path: Path) -> None:
    """Refuse a task that got another task's module, because both have one of that name.

    Raises:
        ConfigurationError: A module was loaded before from elsewhere.
    """
    for name, file in imported_files(path).items():
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if loaded is None or not file.is_relative_to(path.parent):
            continue
        if Path(loaded).resolve() != file and not _is_library(Path(loaded).resolve()):
            raise ConfigurationError(
                f"Task {spec!r}: its module {name} is {file}, and {loaded} was loaded before under "
                "the same name. Rename one of the two, or run the tasks one by one."
            )


def _imports(file: Path, module: str) -> Iterator[str]:
    """Yield the absolute name of everything that a source file may import, in any place."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # compiled, or to fail on import with a better message
    package = module if file.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and _called(node.func) in _IMPORTERS:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _absolute(name: str, level: int, package: str) -> str:
    if level == 0:
        return name
    parts = package.split(".")
    above = parts[: len(parts) - level + 1]
    return ".".join(filter(None, [*above, name]))


def _called(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def _located(name: str, places: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield each module on the way to a dotted name that has a file, packages first."""
    path: list[str] | None = places
    whole = ""
    for part in filter(None, name.split(".")):
        whole = f"{whole}.{part}".lstrip(".")
        if path is None or (path is places and part in sys.builtin_module_names):
            return
        try:
            spec = PathFinder.find_spec(whole, path)
        except Exception:  # a finder of an installed package may fail in any way
            return
        if spec is None:
            return
        if spec.has_location and spec.origin is not None:
            yield whole, Path(spec.origin).resolve()
        path = (
            None if spec.submodule_search_locations is None else [*spec.submodule_search_locations]
        )


def _is_library(file: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    package = Path(rlbatch.__file__).resolve().parent
    ours = [package, (package / "envs").resolve(), (package / "agents").resolve()]
    return any(file.is_relative_to(folder) for folder in (sysconfig.get_path("stdlib"), *ours))


def _shortened(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
