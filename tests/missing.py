"""Runs a program as if some packages were not installed.

    python tests/missing.py tyro,rich -m rlbatch tasks
    python tests/missing.py keras -c "import rlbatch.integrations.keras"

No finder finds them any more: `find_spec` gives None, and an import fails as Python lets it fail.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib.machinery import ModuleSpec
from typing import Any


class Without:
    """A finder that hides packages from another one."""

    def __init__(self, finder: Any, hidden: frozenset[str]) -> None:
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self.hidden:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def main() -> None:
    names, how, what, *arguments = sys.argv[1:]
    hidden = frozenset(filter(None, names.split(",")))
    loaded = hidden & set(sys.modules)
    if loaded:
        raise SystemExit(f"{loaded} are loaded already")
    sys.meta_path[:] = [Without(finder, hidden) for finder in sys.meta_path]
    sys.argv = [what, *arguments]
    sys.path[0] = os.getcwd()  # as `python -m` has it; beside this file lies tests/rlbatch
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})


main()
