"""Small trainings whose steps are timed: with the controller, without it, with parts of it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from rlbatch.agents.evaluate.overhead_larger import LARGER, Parts, adamw, sgd
from rlbatch.control.config import ControllerConfig
from rlbatch.controller import BatchController
from rlbatch.errors import UnknownNameError
from rlbatch.policy.base import Policy

AfterStep = Callable[[nn.Module, Optimizer], Callable[[Tensor], object]]
"""From a training's parts to what it does with a step's loss after the step."""

Arm = Generator[float]
"""A training that goes on by one optimizer step each time it is asked.

It yields the host's seconds in that step outside of fetching samples, forward and backward passes
and the optimizer: those of the loop itself, and of the controller."""

_SAMPLES = 4096
_CLASSES, _WORDS, _LENGTH, _WIDTH = 10, 64, 32, 64


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Samples that lie on the device, fetched a batch at a time.

    Fetching costs next to nothing, and waits for no device: what is measured is the step.
    """

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        """Keep the samples."""
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch."""
        return self.fetch(indices)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return a whole batch."""
        chosen = torch.tensor(indices).to(self.labels.device, non_blocking=True)
        return self.inputs[chosen], self.labels[chosen]


@dataclass(frozen=True)
class Workload:
    """A model with its data and its optimizer.

    Attributes:
        name: Of the model.
        batch_size: Samples of a step.
        device: Where it trains.
    """

    name: str
    batch_size: int
    device: torch.device

    def __post_init__(self) -> None:
        if self.name not in _MODELS:
            raise UnknownNameError("model", self.name, list(_MODELS))

    def parts(self) -> tuple[nn.Module, Optimizer, DataLoader[Any]]:
        """Return model, optimizer and loader, the same each time."""
        torch.manual_seed(0)
        make_model, make_inputs, make_optimizer = _MODELS[self.name]
        model = make_model().to(self.device)
        samples = -(-_SAMPLES // self.batch_size) * self.batch_size  # whole batches only
        labels = torch.randint(0, _CLASSES, (samples,))
        data = Batches(make_inputs(samples).to(self.device), labels.to(self.device))
        loader: DataLoader[Any] = DataLoader(
            data, batch_size=self.batch_size, shuffle=True, collate_fn=_as_it_is
        )
        return model, make_optimizer(model), loader


class _Stopwatch:
    """Takes the time spent within wrapped calls out of the time around them.

    It is the thread's own: others on the machine do not count.
    """

    def __init__(self) -> None:
        self._within = self._began = 0.0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, its time not counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            value = call(*args, **kwargs)
            self._within += time.thread_time() - began
            return value

        return timed

    def watched(self, loss: Any) -> Any:
        """Return the loss, the time of its backward pass not counted."""
        loss.backward = self.wrap(loss.backward)
        return loss

    def start(self) -> None:
        """Begin a span."""
        self._within, self._began = 0.0, time.thread_time()

    def stop(self) -> float:
        """Return the seconds of the span outside of wrapped calls."""
        return time.thread_time() - self._began - self._within


def _watched(workload: Workload) -> tuple[_Stopwatch, nn.Module, Any, DataLoader[Any]]:
    """Return a stopwatch with the parts of a training, whose own time it does not count."""
    watch = _Stopwatch()
    model, optimizer, loader = workload.parts()
    data: Any = loader.dataset
    data.__dict__["fetch"] = watch.wrap(data.fetch)
    optimizer.__dict__["step"] = watch.wrap(optimizer.step)
    optimizer.__dict__["zero_grad"] = watch.wrap(optimizer.zero_grad)
    return watch, model, optimizer, loader


def plain(workload: Workload, after_step: AfterStep | None = None) -> Arm:
    """Train without a controller.

    Args:
        workload: What is trained.
        after_step: What else is done, and counted as own time.
    """
    watch, model, optimizer, loader = _watched(workload)
    after = None if after_step is None else after_step(model, optimizer)
    while True:
        watch.start()
        for x, y in loader:
            own = watch.stop()
            loss = watch.watched(nn.functional.cross_entropy(model(x), y))
            watch.start()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if after is not None:
                after(loss)
            own += watch.stop()
            del loss.backward  # a cycle of references would keep the graph
            yield own
            watch.start()


def controlled(workload: Workload, policy: Policy | str, config: ControllerConfig) -> Arm:
    """Train with a controller. Of a divided step, the time of its last part is yielded."""
    watch, model, optimizer, loader = _watched(workload)
    controller = BatchController(
        model, optimizer, batch_size=workload.batch_size, policy=policy, config=config
    )
    batches = controller.loader(loader)
    while True:
        watch.start()
        for x, y in batches:
            own = watch.stop()
            loss = watch.watched(nn.functional.cross_entropy(model(x), y))
            watch.start()
            controller.backward(loss)
            stepped = controller.step()
            own += watch.stop()
            del loss.backward  # a cycle of references would keep the graph
            if stepped:
                yield own
            watch.start()


def host_reads(arm: Arm, device: torch.device, steps: int = 8) -> float:
    """Return how often a step of a training has the host wait for a value of a tensor.

    On CUDA by torch's own record of synchronisations. Elsewhere the reads of scalars are counted,
    which is what would wait for a device: `.item()`, `.tolist()`, `bool()` of a tensor.
    """
    if device.type == "cuda":
        with counted_waits() as waits:
            advance(arm, steps)
        return waits.reads / steps
    with ReadCounter() as counter:
        advance(arm, steps)
    return counter.reads / steps


@dataclass
class Waits:
    """How often the host has waited for a GPU.

    Attributes:
        reads: Waits so far; complete once the block is left.
    """

    reads: int = 0


@contextmanager
def counted_waits() -> Generator[Waits]:
    """Count, within a block, the waits for a GPU that torch knows of."""
    waits = Waits()
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # says that it is a prototype
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            waits.reads = sum("called a synchronizing" in str(w.message) for w in caught)


class ReadCounter(TorchDispatchMode):
    """Counts reads of a tensor's value while it is entered."""

    def __init__(self) -> None:
        """Start at none."""
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def advance(arm: Arm, steps: int) -> list[float]:
    """Do some steps and return what each yielded."""
    return [next(arm) for _ in range(steps)]


class _Transformer(nn.Module):
    """Two encoder layers over word embeddings, and a classifier of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, _WIDTH)
        layer = nn.TransformerEncoderLayer(_WIDTH, 4, 4 * _WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(_WIDTH, _CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(words)).mean(dim=1))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, _CLASSES)
    )


def _cnn() -> nn.Module:
    def block(channels: int, wider: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, wider, 3, padding=1)
        return [convolution, nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(*block(1, 16), *block(16, 32), nn.Flatten(), nn.Linear(32 * 49, _CLASSES))


_adamw = partial(adamw, learning_rate=1e-3)


def _as_it_is(batch: Any) -> Any:
    return batch


_SMALL: dict[str, Parts] = {
    "mlp": (_mlp, lambda samples: torch.randn(samples, 64), _adamw),
    "cnn": (_cnn, lambda samples: torch.randn(samples, 1, 28, 28), sgd),
    "transformer": (
        _Transformer,
        lambda samples: torch.randint(0, _WORDS, (samples, _LENGTH)),
        _adamw,
    ),
}

MODELS = tuple(_SMALL)
"""Names of the small models, whose steps are short: there the controller is felt most."""

_MODELS = _SMALL | LARGER
