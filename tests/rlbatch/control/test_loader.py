"""Checkpoints from any line of a training loop: what is resumed is the uninterrupted run."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from rlbatch.controller import BatchController
from rlbatch.errors import ConfigurationError
from rlbatch.testing import ScriptedPolicy

SIZE = 61
BASE = 8
EPOCHS = 5

Sample = tuple[Tensor, Tensor]
Record = tuple[int, list[int], float]


class Rows(Dataset[Sample]):
    """Rows with their number, and noise that is drawn when they are read."""

    noise = 0.1

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Sample:
        x = torch.full((4,), index / SIZE)
        return torch.tensor(index), x + self.noise * torch.randn(4) if self.noise else x


class Exact(Rows):
    noise = 0.0


class Stream(IterableDataset[Sample]):
    """The rows in an order drawn when the epoch begins; each worker reads its share."""

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        share = torch.arange(first, SIZE, step)
        for index in share[torch.randperm(len(share))].tolist():
            yield Exact()[index]


class UnknownLength(IterableDataset[Sample]):
    def __iter__(self) -> Iterator[Sample]:
        yield from ()


LOADERS: dict[str, Any] = {
    "shuffle": lambda: DataLoader(Rows(), BASE, shuffle=True),
    "drop last": lambda: DataLoader(Rows(), BASE, shuffle=True, drop_last=True),
    "generator": lambda: DataLoader(
        Rows(), BASE, shuffle=True, generator=torch.Generator().manual_seed(4)
    ),
    "weighted": lambda: DataLoader(
        Rows(), BASE, sampler=WeightedRandomSampler([1.0, 2.0] * 30, 50)
    ),
    "batch sampler": lambda: DataLoader(
        Rows(), batch_sampler=BatchSampler(RandomSampler(range(50)), BASE, drop_last=False)
    ),
    "stream": lambda: DataLoader(Stream(), BASE),
    "workers": lambda: DataLoader(Exact(), BASE, shuffle=True, num_workers=2),
    "persistent": lambda: DataLoader(
        Exact(), BASE, shuffle=True, num_workers=1, persistent_workers=True, prefetch_factor=3
    ),
    "workers of a stream": lambda: DataLoader(Stream(), BASE, num_workers=2),
}


class Training:
    """A loop that may save at any line, and records each micro-batch."""

    def __init__(self, name: str, seed: int = 3) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.controller = BatchController(
            self.model,
            self.optimizer,
            batch_size=BASE,
            policy=ScriptedPolicy((1.0, -1.0, 0.5, 0.0, -0.5) * 20),
            cost="samples",
            micro_batch_size=5,
            lr_coupling="adascale",
        )
        self.loader = self.controller.loader(LOADERS[name]())
        self.records: list[Record] = []
        self.states: list[tuple[str, int, bytes]] = []

    def run(self, *, save: bool = False) -> None:
        steps = self.controller.components["steps"]
        for _ in range(self.controller.components["epoch"], EPOCHS):
            for index, x in self.loader:
                self.save(save, "arrived", steps)
                loss = (self.model(x) - 1).square().mean()
                self.controller.backward(loss)
                self.save(save, "backward", steps)
                self.records.append((steps, index.tolist(), float(loss.detach())))
                stepped = self.controller.step()
                steps += bool(stepped)
                self.save(save, "stepped" if stepped else "middle", steps)

    def save(self, wanted: bool, line: str, steps: int) -> None:
        if wanted:
            parts = self.model, self.optimizer, self.controller
            file = io.BytesIO()
            torch.save([part.state_dict() for part in parts], file)
            self.states.append((line, steps, file.getvalue()))

    def load(self, state: bytes) -> None:
        parts: Any = self.model, self.optimizer, self.controller
        for part, saved in zip(
            parts, torch.load(io.BytesIO(state), weights_only=True), strict=True
        ):
            part.load_state_dict(saved)


@functools.cache
def uninterrupted(name: str) -> Training:
    training = Training(name)
    training.run(save=True)
    return training


def check(name: str, line: str, nth: int) -> None:
    whole = uninterrupted(name)
    states = [state for state in whole.states if state[0] == line]
    _, steps, state = states[nth % len(states)]
    resumed = Training(name, seed=99)
    resumed.load(state)
    resumed.run()
    assert resumed.records == [record for record in whole.records if record[0] >= steps]
    for got, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(got, expected)


LINES = ["arrived", "backward", "middle", "stepped"]


@pytest.mark.parametrize("nth", [0, 2, 9, -2])
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(
    "name", ["shuffle", "drop last", "generator", "weighted", "batch sampler", "stream"]
)
def test_a_checkpoint_from_any_line_resumes_the_run(name: str, line: str, nth: int) -> None:
    check(name, line, nth)


@pytest.mark.slow
@pytest.mark.parametrize(("line", "nth"), [("arrived", 2), ("middle", 7), ("stepped", 12)])
@pytest.mark.parametrize("name", ["workers", "persistent", "workers of a stream"])
def test_a_checkpoint_resumes_the_run_with_prefetching_workers(
    name: str, line: str, nth: int
) -> None:
    check(name, line, nth)


def test_a_step_in_the_hands_of_the_loop_is_not_counted() -> None:
    training = Training("shuffle")
    places: list[tuple[int, int]] = []
    for _, x in training.loader:
        state = training.controller.state_dict()
        places.append((state["loader"]["steps"], state["loader"]["position"]))
        training.controller.backward(training.model(x).mean())
        if training.controller.step():
            state = training.controller.state_dict()
            places.append((state["loader"]["steps"], state["loader"]["position"]))
            break
    assert places == [(0, 0)] * (len(places) - 1) + [(1, BASE)]


def test_a_stream_needs_a_length() -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = BatchController(model, optimizer, batch_size=BASE, policy="fixed")
    with pytest.raises(ConfigurationError, match=r"UnknownLength.*no __len__"):
        controller.loader(DataLoader(UnknownLength(), BASE))
    with pytest.raises(ConfigurationError, match="has 4"):
        controller.loader(DataLoader(Stream(), 4))
    with pytest.raises(ConfigurationError, match="single samples"):
        controller.loader(DataLoader(Stream(), None))


def test_a_controlled_loader_has_no_length() -> None:
    with pytest.raises(TypeError, match="len"):
        len(Training("shuffle").loader)
