"""`rlbatch tasks`: what can be trained."""

from __future__ import annotations

from dataclasses import dataclass

from rlbatch.cli import _shared


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
        from rlbatch.envs.task import resolve_task, task_names

        rows: list[dict[str, object]] = []
        for name in task_names():
            task = resolve_task(name)
            size: int = len(task.train_set)  # pyright: ignore[reportArgumentType]
            rows.append(
                {
                    "task": name,
                    "samples": size,
                    "batch_size": task.batch_size,
                    "max_batch_size": task.max_batch_size or size,
                    "target": task.target,
                }
            )
        if self.json:
            _shared.print_json_lines(rows)
            return 0
        columns = ["task", "samples", "default batch size", "largest", "target loss"]
        cells = [[str(value) for value in row.values()] for row in rows]
        _shared.print_table("Tasks", columns, cells, text=["task"])
        return 0
