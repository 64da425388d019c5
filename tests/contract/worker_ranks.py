"""Frameworks with loader workers on two processes: `worker_ranks.py jobs.json` under torchrun.

Each process writes what it saw of each job to `FOLDER/NAME/RANK.pt`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from tests.rlbatch.integrations import accelerate_ranks, lightning_ranks, transformers_ranks
from tests.rlbatch.integrations.torchrun import serve


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        name: Of the folder for results and checkpoints.
        framework: Whose job of two processes it is.
        fields: Of that job.
        resume: Name of the job whose first saved state is taken up.
    """

    name: str
    framework: str
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    resume: str = ""


def run(job: Job, folder: Path) -> dict[str, Any]:
    """Train, and return what this process saw.

    `steps` has the samples of each optimizer step, of all processes where `gathered`, and `values`
    numbers of each step that have to be equal. `behind` is the step behind which a state was.
    """
    AcceleratorState._reset_state()
    GradientState._reset_state()
    told: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in job.fields.items()
    }
    behind = first_saved(job.framework, folder / job.resume) if job.resume else 0
    if job.framework == "lightning":
        resume = f"{job.resume}/{behind}.ckpt" if behind else ""
        seen = lightning_ranks.run(lightning_ranks.Job(job.name, **told, resume=resume), folder)
        values: list[Tensor] = seen["gradients"]
        return {"steps": seen["steps"], "values": values, "gathered": True, "behind": behind}
    if job.framework == "accelerate":
        place: Any = (job.resume, behind) if behind else ()
        seen = accelerate_ranks.run(accelerate_ranks.Job(job.name, **told, resume=place), folder)
    else:
        saved = str(folder / job.resume / f"checkpoint-{behind}") if behind else None
        seen = transformers_ranks.run(
            transformers_ranks.Job(job.name, **told, resume=saved), folder
        )
    steps = [[row for part in step for row in part] for step in seen["batches"]]
    return {"steps": steps, "values": seen["weights"], "gathered": False, "behind": behind}


def first_saved(framework: str, folder: Path) -> int:
    """Return the optimizer steps behind which a run first saved its state."""
    pattern = {"lightning": "*.ckpt", "accelerate": "state*", "transformers": "checkpoint-*"}
    names = [path.stem for path in folder.glob(pattern[framework])]
    return min(int("".join(filter(str.isdigit, name))) for name in names)


if __name__ == "__main__":
    serve(Job, run)
