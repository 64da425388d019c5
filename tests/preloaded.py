"""Runs programs in processes forked from one that has heavy packages imported already.

Importing torch takes seconds, which a test that starts many processes would spend on each of them:

    with Preloaded("import torch") as python:
        done = python.run("import torch; print(torch.ones(2))")

Each program is the main module of a process of its own, with what the first lines imported in
`sys.modules` and nothing else of theirs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

SERVER = """
import json, os, sys

def _begin(job, names):
    os.chdir(job["cwd"])
    for number, path in enumerate([os.devnull, job["out"], job["err"]]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = job["argv"]
    program = compile(job["program"], "<program>", "exec")
    for name in [name for name in names if not name.startswith("__")]:
        del names[name]
    exec(program, names)

for _line in iter(sys.stdin.readline, ""):
    _child = os.fork()
    if not _child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(_child, 0)[1]), flush=True)
else:
    sys.exit()
_begin(json.loads(_line), globals())  # in a process of its own, which ends as any other does
"""


class Preloaded:
    """A process that imports once, and forks one for each program.

    Args:
        imports: Lines that it begins with; threads of theirs would not survive the forks.
        options: Of the interpreter.
    """

    def __init__(self, imports: str, options: Sequence[str] = ()) -> None:
        self._server = subprocess.Popen(
            [sys.executable, *options, "-c", f"{imports}\n{SERVER}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, program: str, *arguments: str, cwd: Path | str = "."
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end and return what it printed and its exit code.

        Args:
            program: Its text.
            arguments: `sys.argv` from place 1 on.
            cwd: Where it runs.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            job = {
                "program": program,
                "argv": ["-c", *arguments],
                "cwd": str(Path(cwd).resolve()),
                "out": str(out),
                "err": str(err),
            }
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
            code = self._server.stdout.readline()
            assert code, "the process that imports has ended"
            return subprocess.CompletedProcess(
                job["argv"], int(code), out.read_text(), err.read_text()
            )

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.communicate()
