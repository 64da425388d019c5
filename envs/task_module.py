"""A task's file run as a module."""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from rlbatch.errors import ConfigurationError, RlbatchError


def execute(path: Path, spec: str) -> ModuleType:
    """Run a file as a module; its name follows from its path, so that pickles find it again.

    Args:
        path: The file.
        spec: How the task was named, for messages.

    Raises:
        ConfigurationError: It is no file of Python's.
        RlbatchError: It raised; the original error is the cause.
    """
    name = f"_rlbatch_task_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigurationError(
            f"Task {spec!r}: {path} cannot be loaded as Python. Use a .py file."
        )
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except RlbatchError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise RlbatchError(
            f"Task {spec!r}: {path} must import without error, but raised "
            f"{type(error).__name__}: {error}. Run `python {shlex.quote(str(path))}` to find the "
            "cause."
        ) from error
    return module


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let a task file import the modules beside it, as Python lets a script."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
