"""Mixed precision, compiled models and memory, end to end under the controller."""

from __future__ import annotations

import math
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW
from torch.utils.data import DataLoader

from rlbatch.agents.evaluate.overhead_larger import LanguageModel
from rlbatch.agents.gpu.language_data import Text, Windows, as_it_is, library_text
from rlbatch.agents.gpu.memory_runs import run_memory
from rlbatch.agents.gpu.report import PartSettings, Report, wait
from rlbatch.controller import BatchController
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import read_episode

_POLICY = "noise-scale:theta=12"  # measures the noise, and grows where it is large


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        precision: Of the forward pass.
        scaled: With a GradScaler.
        compiled: With `torch.compile`.
    """

    precision: torch.dtype = torch.float32
    scaled: bool = False
    compiled: bool = False


WAYS = {
    "float32": Way(),
    "float16, GradScaler": Way(torch.float16, scaled=True),
    "bfloat16": Way(torch.bfloat16),
    "bfloat16, torch.compile": Way(torch.bfloat16, compiled=True),
}


def run(settings: PartSettings, report: Report) -> None:
    """Train a small language model in each way, then find out what fits into memory."""
    report.note(
        f"A language model on Python's sources, policy {_POLICY}, gradients clipped; the noise is "
        "tr(Sigma) / |G|^2 in samples, from the last decision that had a measurement."
    )
    run_memory(settings, report)
    text = library_text(settings.device, most=3 << 20)
    for name, way in WAYS.items():
        report.experiment(name, lambda n=name, w=way: _train(n, w, text, settings, report))


@dataclass
class _Run:
    """What a run came to: losses on the device, samples of each step, its decisions."""

    losses: list[Tensor] = field(default_factory=list[Tensor])
    sizes: list[int] = field(default_factory=list[int])
    decisions: list[DecisionRecord] = field(default_factory=list[DecisionRecord])
    seconds: float = 0.0


def _train(name: str, way: Way, text: Text, settings: PartSettings, report: Report) -> None:
    """Train in one way, and look at what came of it."""
    device, tiny = settings.device, settings.tiny
    length, batch_size, steps = (16, 4, 24) if tiny else (128, 32, 150)
    width, layers = (16, 1) if tiny else (256, 2 if way.compiled else 4)  # compiling takes long
    torch.manual_seed(0)
    model = LanguageModel(256, length, width, 2, layers).to(device)
    call: Any = model
    if way.compiled:
        torch.compiler.reset()
        # Without a GPU nothing but the capture of the model is rehearsed: no compiler is needed.
        call = torch.compile(model, backend="inductor" if settings.on_cuda else "eager")
    scaler = torch.amp.GradScaler(device.type) if way.scaled else None
    data = Windows(text.train, length, steps * batch_size, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        controller = BatchController(
            call,
            AdamW(model.parameters(), lr=1e-3),
            batch_size=batch_size,
            policy=_POLICY,
            scaler=scaler,
            max_batch_size=4 * batch_size,
            on_error="raise",
            log_dir=Path(folder) / "log",
        )
        run = _loop(call, controller, DataLoader(data, batch_size, True, collate_fn=as_it_is), way)
        run.decisions = [r for r in read_episode(Path(folder) / "log").records if r.signals]
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    scale = None if scaler is None else scaler.get_scale()
    _show(name, way, run, finite and sum(run.sizes) == len(data), settings, report, scale)


def _loop(call: Any, controller: BatchController, loader: DataLoader[Any], way: Way) -> _Run:
    run, began = _Run(), time.perf_counter()
    mixed = way.precision != torch.float32
    for batch in controller.loader(loader):
        with torch.autocast(batch.device.type, way.precision) if mixed else nullcontext():
            logits = call(batch[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        run.losses.append(loss.detach())
        controller.backward(loss)
        if samples := controller.step(clip_norm=1.0):
            run.sizes.append(samples)
    wait(run.losses[0].device)
    run.seconds = time.perf_counter() - began
    controller.close()
    return run


def _show(
    name: str,
    way: Way,
    run: _Run,
    whole: bool,
    settings: PartSettings,
    report: Report,
    scale: float | None,
) -> None:
    """Add a run's row and check; `whole`: every sample came, and all weights are finite."""
    noise = [_noise(record.signals) for record in run.decisions]
    known = [value for value in noise if math.isfinite(value)]
    first, last = float(run.losses[0]), float(torch.stack(run.losses[-5:]).mean())
    row: dict[str, Any] = {"way": name, "steps": len(run.sizes), "samples": sum(run.sizes)}
    row |= {"first loss": first, "last loss": last, "largest batch": max(run.sizes)}
    row |= {"decisions": len(noise), "with noise": len(known)}
    row |= {"noise scale": known[-1] if known else None, "seconds": run.seconds, "scale": scale}
    report.add("runs", row)
    # Models under torch.compile are not measured, see docs/architecture.md.
    fine = whole and last < first and bool(known) != way.compiled
    detail = f"loss {first:.3f} to {last:.3f}, {len(known)} of {len(noise)} chunks with noise"
    report.check(f"{name}: a run under the controller", fine if settings.on_cuda else None, detail)
    if not whole:
        raise RuntimeError(f"{name}: {sum(run.sizes)} samples came, or weights are not finite")


def _noise(signals: Any) -> float:
    """Return the noise scale of a decision's chunk, in samples; NaN where none was measured."""
    trace, grad = (float(signals.get(key) or math.nan) for key in ("noise_trace", "grad_sqr"))
    return trace / grad if grad > 0 else math.nan
