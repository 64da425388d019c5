"""Holds the arrows of docs/architecture.md: who may import whom, and which packages where."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first. A module may import its own layer and those below; the longest prefix counts.
LAYERS: list[tuple[str, ...]] = [
    (
        *("rlbatch.errors", "rlbatch.arguments", "rlbatch.extras", "rlbatch.files", "rlbatch.text"),
        "rlbatch.__version__",
    ),
    ("rlbatch.signals",),
    ("rlbatch.observation",),
    ("rlbatch.policy",),
    ("rlbatch.data",),
    ("rlbatch",),  # the controller, the log, and every module that is named nowhere else
    ("rlbatch.integrations",),
    ("rlbatch.envs",),
    ("rlbatch.agents",),
    ("rlbatch.inspect", "rlbatch.testing"),
    ("rlbatch.cli", "rlbatch.__main__"),
]
# The package's own __init__ loads names from everywhere, but only when they are asked for.
LEVEL = {prefix: level for level, prefixes in enumerate(LAYERS) for prefix in prefixes}

CORE = {"torch", "numpy", "safetensors"} | sys.stdlib_module_names
# Here optional packages may be imported, also at the top of a module.
WITH_EXTRAS = ("integrations", "inspect", "cli", "testing", "envs", "agents")
# Optional, and used by one core module inside of a function.
ALLOWED_INSIDE = {"rlbatch.log.tensorboard_events": {"tensorboard"}}


def imports(tree: ast.Module, module: str) -> Iterator[tuple[str, int, bool]]:
    """Yield (imported name, line, runs when the module is loaded) of every import.

    `import rlbatch` gives a package that is still empty: what counts is what is read from it.
    """
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for child in ast.walk(statement)
    }
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "rlbatch":
                    continue
                yield alias.name, node.lineno, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative; ruff forbids these, the arrows hold for them all the same
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, *([base] if base else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno, id(node) not in inside
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rlbatch":
            yield f"rlbatch.{node.attr}", node.lineno, id(node) not in inside


def level(name: str) -> int:
    """Return the layer of a module, by the longest prefix."""
    parts = name.split(".")
    prefixes = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next(LEVEL[prefix] for prefix in prefixes if prefix in LEVEL)


def violations(path: Path, root: Path) -> list[str]:
    """Return what a file of the package imports against the arrows, one text a violation."""
    parts = path.relative_to(root).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    # Relative imports count from the package, which for an __init__ is the module itself.
    relative_to = f"{module}.__init__" if parts[-1] == "__init__" else module
    found: list[str] = []
    for name, line, at_load in imports(ast.parse(path.read_text(encoding="utf-8")), relative_to):
        package = name.split(".")[0]
        where = f"{path.relative_to(root)}:{line}"
        if package in ("envs", "agents"):
            found.append(f"{where}: imports {name}; it is called rlbatch.{name}")
        elif package == "rlbatch":
            if level(name) > level(module):
                found.append(f"{where}: {module} imports {name}, which stands above it")
        elif parts[1] not in WITH_EXTRAS and package not in CORE:
            allowed = not at_load and package in ALLOWED_INSIDE.get(module, ())
            if not allowed:
                found.append(
                    f"{where}: {module} imports {package}; the core needs torch, "
                    "numpy and safetensors only"
                )
    return found


def package_files(root: Path) -> list[Path]:
    """Return the Python files of the package, those behind the links of envs and agents too."""
    folders = [root / "rlbatch", root / "rlbatch" / "envs", root / "rlbatch" / "agents"]
    return sorted({path for folder in folders for path in folder.rglob("*.py")})


def test_imports_run_one_way() -> None:
    found = [text for path in package_files(ROOT) for text in violations(path, ROOT)]

    assert not found, "\n".join(found)


def test_every_folder_is_looked_at() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in package_files(ROOT)}

    assert {"rlbatch/errors.py", "rlbatch/envs/task.py", "rlbatch/signals/record.py"} <= names
    assert any(name.startswith("rlbatch/agents/") for name in names)


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("rlbatch/signals/x.py", "import rlbatch.policy.base", "stands above"),
        ("rlbatch/signals/x.py", "from rlbatch import controller", "stands above"),
        ("rlbatch/signals/x.py", "from rlbatch.observation import encode", "stands above"),
        ("rlbatch/signals/x.py", "def f():\n    import rlbatch.controller", "stands above"),
        ("rlbatch/signals/x.py", "from ..policy import base", "stands above"),
        ("rlbatch/signals/__init__.py", "from ..policy import base", "stands above"),
        ("rlbatch/signals/x.py", "import rlbatch\nrlbatch.controller", "stands above"),
        ("rlbatch/errors.py", "from rlbatch.signals import record", "stands above"),
        ("rlbatch/observation.py", "import rlbatch.policy", "stands above"),
        ("rlbatch/policy/x.py", "from rlbatch.data import window", "stands above"),
        ("rlbatch/controller.py", "from rlbatch.envs import Task", "stands above"),
        ("rlbatch/controller.py", "from rlbatch import agents", "stands above"),
        ("rlbatch/integrations/x.py", "import rlbatch.envs.task", "stands above"),
        ("rlbatch/envs/x.py", "from rlbatch.agents import ppo", "stands above"),
        ("rlbatch/agents/x.py", "from rlbatch.cli import main", "stands above"),
        ("rlbatch/agents/x.py", "import envs.task", "called rlbatch.envs.task"),
        ("rlbatch/cli/x.py", "from agents import ppo", "called rlbatch.agents.ppo"),
        ("rlbatch/controller.py", "import gymnasium", "the core needs"),
        ("rlbatch/controller.py", "try:\n    import rich\nexcept ImportError: pass", "core needs"),
        ("rlbatch/controller.py", "def f():\n    import tensorboard", "the core needs"),
        ("rlbatch/log/tensorboard_events.py", "import tensorboard", "the core needs"),
        ("rlbatch/policy/x.py", "from stable_baselines3 import PPO", "the core needs"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, source: str, message: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)

    found = violations(path, tmp_path)

    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "rlbatch/observation.py",
            "from rlbatch.signals.record import Signals\nimport numpy.typing",
        ),
        ("rlbatch/controller.py", "import torch.nn, json\nfrom rlbatch.data import window"),
        ("rlbatch/policy/x.py", "from rlbatch.policy.base import Policy\nfrom . import base"),
        ("rlbatch/policy/x.py", "import rlbatch\nprint(rlbatch.__version__)"),
        ("rlbatch/envs/x.py", "import gymnasium\nfrom rlbatch.log import episode_log"),
        ("rlbatch/agents/x.py", "import stable_baselines3\nimport rlbatch.envs"),
        ("rlbatch/cli/x.py", "import tyro\nfrom rlbatch.inspect import table"),
        ("rlbatch/log/tensorboard_events.py", "def f():\n    import tensorboard.compat"),
        (
            "rlbatch/signals/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rlbatch.controller",
        ),
    ],
)
def test_a_right_import_is_let_through(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)

    assert violations(path, tmp_path) == []
