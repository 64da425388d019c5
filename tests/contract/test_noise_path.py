"""How many hands the gradient noise goes through, from the backward pass to the log line.

A chunk of one measured step is run twice. The first run tells which numbers the noise is made of,
the second watches which functions of the package pass them on to another one, and in which of the
package's classes they lie meanwhile. Functions that compute with them and call no other do not
count, nor does what only reads them on the way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rlbatch
from rlbatch.log.episode_reader import read_episode
from rlbatch.testing import ScriptedPolicy

PACKAGE = str(Path(rlbatch.__file__).parent)
READERS = ("control/engine.py", "control/rollback.py", "control/coupled_rate.py")
MOST_FUNCTIONS, MOST_CLASSES = 20, 4

Hook = Callable[[FrameType, str, Any], None]


class Measuring(ScriptedPolicy):
    needs_gradient_noise = True


def run_chunk(log_dir: Path, hook: Hook) -> None:
    """Make three steps, of which the third is measured, and watch that one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    controller = rlbatch.BatchController(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batch_size=32,
        policy=Measuring((0.0,)),
        noise_rate=9.0,
        first_chunk_steps=1,
        min_chunk_steps=1,
        log_dir=log_dir,
    )
    x = torch.randn(96, 6)
    data = TensorDataset(x, x.sum(dim=1, keepdim=True))
    for inputs, targets in controller.loader(DataLoader(data, batch_size=32)):
        loss = (model(inputs) - targets).square().mean()
        if controller.steps == 2:
            sys.setprofile(hook)
        try:
            controller.backward(loss)
            controller.step()
        finally:
            sys.setprofile(None)
    controller.close()


def numbers(value: Any, depth: int = 3) -> Iterator[float]:
    """Yield the numbers that a value holds, some levels deep; of arrays those of small ones."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, Tensor):
        yield from numbers(value.detach().numpy())
    elif isinstance(value, np.ndarray) and value.size < 20 and value.dtype.kind == "f":
        yield from value.ravel().tolist()
    elif isinstance(value, dict):
        value = tuple(value.values())
    elif is_dataclass(value):
        value = tuple(getattr(value, field.name) for field in fields(value))
    if depth and isinstance(value, list | tuple):
        for item in value:
            yield from numbers(item, depth - 1)


def is_function(frame: FrameType) -> bool:
    """Tell the package's functions from others', and from comprehensions."""
    code = frame.f_code
    return code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<")


def name_of(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}: {frame.f_code.co_qualname}"


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frames of the package's functions, the innermost first."""
    while frame is not None:
        if is_function(frame):
            yield frame
        frame = frame.f_back


class NoiseNumbers:
    """Learns what the noise is made of: norms on the device, and what is estimated from them."""

    def __init__(self) -> None:
        self.found: set[float] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if is_function(frame) and frame.f_code.co_name == "chunk_measurement":
            if event == "call":
                self.found.update(frame.f_locals["norms"][:2].tolist())
            elif event == "return":
                self.found.update((argument.grad_sqr, argument.noise_trace))


class NoisePath:
    """Watches who passes numbers on, until the line of the log is there.

    Attributes:
        functions: That call one which returns some of the numbers, or writes the line.
        classes: Of the package, that hold some.
    """

    def __init__(self, watched: set[float]) -> None:
        self.functions: dict[str, None] = {}
        self.classes: dict[str, None] = {}
        self._watched = watched

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "return" or not is_function(frame):
            return
        writes = frame.f_code.co_name == "write_all"
        if not writes and self._watched.isdisjoint(numbers(argument)):
            return
        path = list(callers(frame))
        names = [name_of(one) for one in path]
        if not any(name.startswith(READERS) for name in names):
            self.functions |= dict.fromkeys(name for name in names if name != names[0])
            for one in path:
                self._note_classes(argument, *one.f_locals.values())
        if writes:
            sys.setprofile(None)

    def _note_classes(self, *values: Any) -> None:
        for value in values:
            kind = type(value)
            ours = is_dataclass(value) or isinstance(value, tuple)
            if not (ours and kind.__module__.startswith("rlbatch.")):
                continue
            if not self._watched.isdisjoint(numbers(value)):
                self.classes[kind.__name__] = None


def test_few_functions_and_classes_pass_the_noise_on(tmp_path: Path) -> None:
    known = NoiseNumbers()
    run_chunk(tmp_path / "first", known)
    path = NoisePath(known.found)
    run_chunk(tmp_path / "second", path)

    (line,) = (
        r
        for r in read_episode(tmp_path / "second").records
        if r.step == 3 and r.event == "decision"
    )
    assert {line.signals["grad_sqr"], line.signals["noise_trace"]} < known.found
    assert len(known.found) == 4
    functions, classes = list(path.functions), list(path.classes)
    for part in ("controller.py", "signals/monitor.py", "signals/measurement.py", "log/"):
        assert any(name.startswith(part) for name in functions), "the path is not seen"
    assert len(functions) <= MOST_FUNCTIONS, functions
    assert len(classes) <= MOST_CLASSES, classes
