"""`rlbatch tasks`: what can be trained."""

from __future__ import annotations

from dataclasses import dataclass

from rlbatch.cli import _shared

_FIGURES = ("samples", "batch_size", "max_batch_size", "target")


@dataclass(frozen=True)
class Command:
    """List the built-in tasks.

    A task of your own is named as path/to/file.py:function wherever a task is asked for; the
    function returns a `rlbatch.envs.task.Task`. `simulated:N` is known to `rlbatch bench`.

    For example: rlbatch tasks
    """

    json: bool = False
    """Print one JSON object a line."""

    def run(self) -> int:
        """Print the tasks."""
        from rlbatch.envs.task import task_names
        from rlbatch.errors import MissingExtraError

        rows: list[dict[str, object]] = []
        missing: dict[str, list[str]] = {}
        for name in task_names():
            try:
                rows.append(_row(name))
            except MissingExtraError as error:  # the others can still be listed
                rows.append({"task": name, **dict.fromkeys(_FIGURES)})
                missing.setdefault(str(error), []).append(name)
        for why, names in missing.items():
            _shared.note(f"rlbatch: Nothing more is known here of {', '.join(names)}: {why}")
        if self.json:
            _shared.print_json_lines(rows)
            return 0
        columns = ["task", "samples", "default batch size", "largest", "target loss"]
        cells = [["-" if value is None else str(value) for value in row.values()] for row in rows]
        _shared.print_table("Tasks", columns, cells, text=["task"])
        return 0


def _row(name: str) -> dict[str, object]:
    from rlbatch.envs.task import resolve_task

    task = resolve_task(name)
    size: int = len(task.train_set)  # pyright: ignore[reportArgumentType]
    figures = (size, task.batch_size, task.max_batch_size or size, task.target)
    return {"task": name, **dict(zip(_FIGURES, figures, strict=True))}
