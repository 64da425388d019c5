"""The command line: one module a command, loaded when it is named.

A command is a module of this package with a frozen dataclass `Command`, whose fields are the
options, whose docstring is the help, and whose `run` returns the exit code. Nothing heavier than
tyro and rich is imported before `run`.

Exit codes: 0 done, 1 the run failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import pkgutil
import select
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, Union

from rlbatch.cli._failures import WRONG_USE
from rlbatch.cli._failures import report as report_failure
from rlbatch.errors import ConfigurationError, MissingExtraError, RlbatchError, UnknownNameError
from rlbatch.extras import missing_extra

DONE, STOPPED = 0, 130

_DESCRIPTION = """Reinforcement learning adapts the batch size while a model trains.

For example: rlbatch demo"""
_CLI_ONLY = ("tasks", "policies", "join", "inspect", "report", "replay")
"""Commands for which the extra `cli` is enough; the others need `train`, which holds it."""
_FIRST = (
    *("demo", "tasks", "policies", "run", "bench", "train", "curves", "export", "join"),
    *("inspect", "report", "replay", "advise", "profile", "sweep"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: What follows `rlbatch`; None takes the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except _AnsweredError as answered:
        return answered.code
    except KeyboardInterrupt:
        print("rlbatch: Stopped. What was finished is kept.", file=sys.stderr)
        return STOPPED
    except BrokenPipeError as error:
        # The reader, such as `head`, has what it wanted; or a process of the command has died.
        return DONE if _drop_output() else report_failure(error)
    except ImportError as error:
        _drop_output()
        return report_failure(_named(error, arguments))
    except Exception as error:
        _drop_output()
        return report_failure(error)


def _named(error: ImportError, arguments: Sequence[str]) -> ImportError:
    """Return the error that names the extra of the command, where a package of it is missing.

    With the first one, of several, all that the command needs is installed.
    """
    alone = not arguments or arguments[0].startswith("-") or arguments[0] in _CLI_ONLY
    named = missing_extra(error, "cli" if alone else "train")
    if named is None:
        return error
    named.__cause__ = error
    return named


class _AnsweredError(Exception):
    """The help, or what is wrong with the options, has been printed."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _drop_output() -> bool:
    """Return whether standard output takes no more; if so, drop what it still holds."""
    try:
        sys.stdout.flush()
        lost = _reader_is_gone()
    except OSError:
        lost = True
    if lost:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return lost


def _reader_is_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads: unbuffered, nothing is left."""
    try:
        poll = select.poll()  # not on Windows
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, ValueError):
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def command_names() -> list[str]:
    """Return the names of the commands."""
    found = {
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    }
    return [name for name in _FIRST if name in found] + sorted(found - set(_FIRST))


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        from rlbatch import __version__

        print(f"rlbatch {__version__}")
        return DONE
    if not arguments or arguments[0] in ("-h", "--help"):
        _parse(_all_commands(), ["--help"], "rlbatch", _DESCRIPTION)
        return DONE if arguments else WRONG_USE  # not reached: the help exits
    arguments = _joined(arguments)
    name = arguments[0]
    if name not in command_names():
        raise UnknownNameError("command", name, command_names())
    _refuse_repeated(arguments[1:])
    _tyro()  # before a command's module is loaded, which may take it for granted
    command = _parse(_command(name), arguments[1:], f"rlbatch {name}")
    try:
        return command.run()
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            return DONE  # rich's way to end when the reader of a table is gone
        # In a task or a policy of the user's:
        raise RlbatchError(
            f"Something that {name} ran ended the process with sys.exit({stop.code!r}). Let it "
            "raise an error instead that says what is wrong."
        ) from stop


def _joined(arguments: list[str]) -> list[str]:
    """Let a command be named by two words: `bench overhead` is `bench-overhead`."""
    name = "-".join(arguments[:2])
    two = len(arguments) > 1 and name in command_names()
    return [name, *arguments[2:]] if two else arguments


def _command(name: str) -> Any:
    return import_module(f"rlbatch.cli.{name.replace('-', '_')}").Command


def _all_commands() -> Any:
    tyro = _tyro()
    kinds = [
        Annotated[_command(name), tyro.conf.subcommand(name, description=_first_line(name))]
        for name in command_names()
    ]
    return Union[tuple(kinds)]  # noqa: UP007 - of a computed number of types


def _first_line(name: str) -> str:
    return (_command(name).__doc__ or "").partition("\n")[0]


def _parse(kind: Any, arguments: list[str], program: str, description: str | None = None) -> Any:
    tyro = _tyro()
    from rlbatch.cli._options import make_registry, reflow_help

    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)
    texts = {"prog": program, "description": description or reflow_help(kind)}
    try:
        return tyro.cli(kind, args=arguments, config=config, registry=make_registry(), **texts)
    except SystemExit as stop:
        raise _AnsweredError(stop.code if isinstance(stop.code, int) else WRONG_USE) from None


def _tyro() -> Any:
    """Return tyro; rich is asked for as well, before a command has worked for hours."""
    for name in ("tyro", "rich"):
        if find_spec(name) is None:
            raise MissingExtraError(name, "cli")
    return import_module("tyro")


def _refuse_repeated(arguments: list[str]) -> None:
    """Refuse an option that is given twice: of the first one nothing would be left."""
    options = [text.partition("=")[0] for text in arguments if text.startswith("--")]
    for option in options:
        if options.count(option) > 1:
            raise ConfigurationError(
                f"{option} is given twice. Give it once, followed by its value or values."
            )
