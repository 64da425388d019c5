"""Files of at most 300 lines, functions of at most 40 without their docstrings.

What was longer when the rule was made stands in `tests/larger_code.json` with its lines. The list
may only shrink: what has grown fails, and so does what is short enough by now and still listed.

    python -m tests.test_code_sizes    writes the list anew
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("rlbatch", "envs", "agents", "scripts", "examples")
LISTED = Path(__file__).with_name("larger_code.json")
FILE_LINES, FUNCTION_LINES = 300, 40


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function, clean=False) is None:
        return lines
    text = function.body[0]
    return lines - ((text.end_lineno or 0) - text.lineno + 1)


def functions(tree: ast.AST, name: str) -> Iterator[tuple[str, int]]:
    """Yield the name, with those of what it stands in, and the lines of each function."""
    for node in ast.iter_child_nodes(tree):
        inner = name
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{name}:{node.name}" if name.endswith(".py") else f"{name}.{node.name}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inner, lines_without_docstring(node)
        yield from functions(node, inner)


def larger(root: Path) -> dict[str, int]:
    """Return what is longer than the rule allows, and its lines."""
    found: dict[str, int] = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if name.startswith(("rlbatch/envs/", "rlbatch/agents/")):  # links to envs/ and agents/
                continue
            text = path.read_text()
            if text.count("\n") > FILE_LINES:
                found[name] = text.count("\n")
            for function, lines in functions(ast.parse(text), name):
                if lines > FUNCTION_LINES:
                    found[function] = max(lines, found.get(function, 0))
    return found


def test_nothing_grows_beyond_the_rule() -> None:
    listed, found = json.loads(LISTED.read_text()), larger(ROOT)

    grown = {name: lines for name, lines in found.items() if lines > listed.get(name, 0)}
    assert not grown, "split these"
    assert not set(listed) - set(found), f"take these from {LISTED.name}"


def test_what_is_longer_is_found(tmp_path: Path) -> None:
    body = "        x = 1\n"
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "long.py").write_text(
        'class A:\n    def f(self):\n        """One\n\n        two."""\n' + 39 * body + "\n\n"
        "    def g(self):\n" + 40 * body + "\n" * 215
    )
    (tmp_path / "envs" / "short.py").write_text("\n" * 300)

    assert larger(tmp_path) == {"envs/long.py": 302, "envs/long.py:A.g": 41}


if __name__ == "__main__":
    LISTED.write_text(json.dumps(larger(ROOT), indent=1, sort_keys=True) + "\n")
