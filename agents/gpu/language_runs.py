"""A small language model in real seconds: constant size, by hand, by rule, by the controller."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import mean

import torch

from rlbatch.agents.gpu.language_data import library_text
from rlbatch.agents.gpu.language_job import PLAIN, LanguageJob, LanguageRun, train
from rlbatch.agents.gpu.report import PartSettings, Report, wait


@dataclass(frozen=True)
class Arm:
    """One way to choose the batch size.

    Attributes:
        policy: Who decides; `PLAIN`: nobody.
        samples: Share of the constant run's samples, with a schedule of that length.
        size: Multiple of the constant run's batch size, the learning rate by its square root.
    """

    policy: str = PLAIN
    samples: float = 1.0
    size: int = 1

    def job(self, job: LanguageJob) -> LanguageJob:
        """Return the job of a run."""
        batch_size = self.size * job.batch_size
        return replace(
            job,
            batch_size=batch_size,
            learning_rate=job.learning_rate * self.size**0.5,
            samples=max(int(self.samples * job.samples) // batch_size, 1) * batch_size,
        )


ARMS = {
    "constant size, plain loop": Arm(),
    "controller (default)": Arm("default"),
    "ramp by hand: 2x at 1/2, 4x at 3/4": Arm("ramp"),
    "Seesaw": Arm("seesaw"),
    "twice the size throughout, plain loop": Arm(size=2),
    "constant size, 70% of the samples": Arm(samples=0.7),
}
"""By what a table calls them. The last two say what a user without a controller can have."""

_SEEDS = 2
_RUNS_OF_A_SEED = 4.6  # in lengths of the constant run, which the others may undercut
_MOST_SECONDS = 45.0  # of a constant run
_FEWEST_SECONDS = 12.0  # or else one seed has to do
_MARGIN = 6.0


def run(settings: PartSettings, report: Report) -> None:
    """Choose how long a run may be, and train arm by arm, seed by seed."""
    began = time.perf_counter()
    job = _job(settings)
    count = sum(p.numel() for p in job.model(0).parameters())
    warm_up(job, settings.tiny)
    step = step_seconds(job, 4 if settings.tiny else 40)
    left = settings.seconds - (time.perf_counter() - began) - _MARGIN
    seeds, samples = (1, 8 * job.batch_size) if settings.tiny else plan(job.batch_size, step, left)
    job = replace(job, samples=samples)
    report.note(
        f"{count / 1e6:.1f} million parameters, samples of {job.length} bytes of Python's library "
        f"({len(job.text.train) / 1e6:.1f} MB, {job.text.files} files), batch size "
        f"{job.batch_size}, {job.samples:,} samples a run, AdamW, cosine with warm-up, bfloat16; "
        f"a step of the constant size took {1e3 * step:.2f} ms beforehand. Losses are of held-out "
        "files, in nats a byte; seconds are of training alone."
    )
    runs: dict[tuple[str, int], LanguageRun] = {}
    for seed in range(seeds):
        names = list(ARMS) if seed % 2 == 0 else list(reversed(ARMS))
        for name in names:
            longest = max((r.seconds for r in runs.values()), default=step * job.steps)
            spent = time.perf_counter() - began
            if not settings.tiny and spent + 1.1 * longest + 2.0 > settings.seconds:
                report.note(f"No time was left for {name}, seed {seed}.")
                continue
            with report.going_on(f"{name}, seed {seed}"):
                arm = ARMS[name]
                runs[name, seed] = train(arm.job(job), arm.policy, seed)
                _show(arm.job(job), name, seed, runs[name, seed], report)
    _summarise(job, runs, report)


def _job(settings: PartSettings) -> LanguageJob:
    if not settings.tiny:
        return LanguageJob(library_text(settings.device))
    text = library_text(settings.device, most=3 << 20)
    return LanguageJob(
        text, width=32, heads=2, layers=1, length=32, batch_size=8, samples=64, validation=64
    )


def plan(batch_size: int, step: float, left: float) -> tuple[int, int]:
    """Return how many seeds, and samples of a run, fit into the seconds that are left.

    Args:
        batch_size: Of the constant run.
        step: Seconds of its step.
        left: Seconds for all runs.
    """
    seeds = _SEEDS if left / (_SEEDS * _RUNS_OF_A_SEED) >= _FEWEST_SECONDS else 1
    seconds = min(_MOST_SECONDS, left / (seeds * _RUNS_OF_A_SEED))
    steps = max(100, int(seconds / step))
    return seeds, steps // 4 * 4 * batch_size


def warm_up(job: LanguageJob, tiny: bool) -> None:
    """Run passes of the sizes to come, and short runs, so that none pays for what is loaded."""
    model = job.model(0)
    optimizer = job.optimizer(model)
    data = job.loader(0).dataset
    for multiple in (1, 2) if tiny else (1, 2, 4, 8, 10):
        indices = [index % job.samples for index in range(multiple * job.batch_size)]
        batch = data.__getitems__(indices)  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(3):
            job.loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    short = replace(job, samples=8 * job.batch_size, validation=1)
    for arm in ARMS.values():
        train(arm.job(short), arm.policy, 0)
    wait(job.device)


def step_seconds(job: LanguageJob, steps: int) -> float:
    """Return what a step of the plain loop takes, after as many untimed ones."""
    short = replace(job, samples=2 * steps * job.batch_size, validation=1)
    train(replace(short, samples=steps * job.batch_size), PLAIN, 0)
    done = train(short, PLAIN, 0)
    return done.seconds / done.steps


def _show(job: LanguageJob, name: str, seed: int, run: LanguageRun, report: Report) -> None:
    row = {
        "batch size": name,
        "seed": seed,
        "seconds": run.seconds,
        "validation loss": run.val_loss,
        "steps": run.steps,
        "samples": run.samples,
        "changes": said(run.changes),
        "peak GB": run.peak_bytes / 1e9 if run.peak_bytes else None,
    }
    report.add("runs", row)
    if run.samples != job.samples:
        raise RuntimeError(f"{run.samples} samples instead of {job.samples}")
    if job.device.type == "cuda":
        torch.cuda.empty_cache()


def said(changes: list[tuple[float, int]]) -> str:
    """Return the changes of the batch size in words; of many, the first and last ones."""
    words = [f"{size} from {share:.0%}" for share, size in changes]
    if len(words) > 6:
        words = [*words[:3], f"... {len(words) - 5} more ...", *words[-2:]]
    return ", ".join(words)


def _summarise(job: LanguageJob, runs: dict[tuple[str, int], LanguageRun], report: Report) -> None:
    """Give means over the seeds that the constant run has too, against it."""
    base = next(iter(ARMS))
    for name in ARMS:
        seeds = [s for n, s in runs if n == name and (base, s) in runs]
        if not seeds:
            continue
        pairs = [(runs[name, seed], runs[base, seed]) for seed in seeds]
        row = {
            "batch size": name,
            "seeds": len(pairs),
            "seconds": mean(one.seconds for one, _ in pairs),
            "of the constant run's, %": 100 * mean(a.seconds / b.seconds for a, b in pairs),
            "validation loss": mean(one.val_loss for one, _ in pairs),
            "above the constant run's": mean(a.val_loss - b.val_loss for a, b in pairs),
            "steps": mean(one.steps for one, _ in pairs),
        }
        report.add("means", row)
