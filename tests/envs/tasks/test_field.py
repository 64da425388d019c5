"""The field suite: its halves, its schedules, and that every job can be trained."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR

from rlbatch.envs.task import collate_samples, resolve_task
from rlbatch.envs.tasks.field import (
    DEVELOPMENT,
    LOCKED,
    QUICK,
    SELECTIONS,
    field_job,
    schedules,
    selected,
    sources,
)
from rlbatch.errors import ConfigurationError, RlbatchError, UnknownNameError
from rlbatch.signals.metric import is_adaptive

ALL = pytest.mark.parametrize("name", SELECTIONS["field"])


def test_one_half_is_locked_and_the_quick_suite_is_not() -> None:
    assert len(DEVELOPMENT) == len(LOCKED) == 6
    assert not set(DEVELOPMENT) & set(LOCKED)
    assert set(QUICK) < set(DEVELOPMENT)
    assert selected("field:locked") == tuple(f"field:{name}" for name in LOCKED)
    with pytest.raises(ConfigurationError, match=r"no suite 'fields'\. Known: field, field:dev"):
        selected("fields")
    with pytest.raises(UnknownNameError, match="Did you mean 'shapes-cnn'"):
        resolve_task("field:shape-cnn")


def test_jobs_are_of_many_kinds() -> None:
    jobs = [field_job(name) for name in SELECTIONS["field"]]
    for half in (DEVELOPMENT, LOCKED):
        members = [job for job in jobs if job.name in half]
        optimizers = [job.optimizer([nn.Parameter(torch.zeros(1))]) for job in members]
        assert {is_adaptive(optimizer) for optimizer in optimizers} == {True, False}
        assert None in {job.scheduler for job in members}
        layers = {type(layer) for job in members for layer in job.model().modules()}
        assert {nn.Dropout, nn.Linear} <= layers
        assert {nn.BatchNorm2d, nn.LayerNorm} <= layers
        assert layers & {nn.GRU, nn.LSTM}


@ALL
def test_every_job_is_of_ordinary_size_and_trains(name: str) -> None:
    job = field_job(name)
    task = resolve_task(f"field:{name}")
    size = len(task.train_set)  # pyright: ignore[reportArgumentType]
    torch.manual_seed(0)
    model = task.model()

    assert task.name == f"field:{name}"
    assert size >= 20_000
    assert 1_000 <= job.planned_steps() <= 5_000
    assert sum(p.numel() for p in model.parameters()) < 100_000
    assert task.max_batch_size == 64 * task.batch_size
    optimizer = task.optimizer(model.parameters())
    batch = collate_samples(task.train_set, range(2 * task.batch_size), task.collate)
    first = task.loss(model, batch).item()
    for _ in range(12):
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert task.loss(model, batch).item() < 0.98 * first
    model.eval()
    val = task.loss(model, collate_samples(task.val_set, range(64), task.collate)).item()
    assert job.target < val  # 12 steps on one batch are not all


@ALL
def test_docs_say_which_half_a_job_is_in(name: str) -> None:
    from pathlib import Path

    text = Path(__file__).parents[3].joinpath("docs", "field-suite.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    assert ("| locked |" in line) == (name in LOCKED)


def rates(scheduler: schedules.Scheduler, steps: int) -> list[float]:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = scheduler(optimizer, steps)
    found: list[float] = []
    for _ in range(steps + 1):
        found.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return found


def test_schedules_equal_those_of_torch() -> None:
    def torchs(kind: type, *arguments: object, **options: object) -> list[float]:
        return rates(lambda optimizer, _: kind(optimizer, *arguments, **options), 40)

    assert rates(schedules.cosine(), 40) == pytest.approx(torchs(CosineAnnealingLR, 40), abs=1e-9)
    cosine = torchs(CosineAnnealingLR, 40, eta_min=0.1)
    assert rates(schedules.cosine(floor=0.1), 40) == pytest.approx(cosine)
    line = torchs(LinearLR, 1.0, 0.2, 40)
    assert rates(schedules.linear(floor=0.2), 40) == pytest.approx(line)
    steps = torchs(MultiStepLR, [20, 30], gamma=0.1)
    assert rates(schedules.step(0.5, 0.75), 40) == pytest.approx(steps)


def test_warm_up_and_stable_phase() -> None:
    found = rates(schedules.warmup_stable_decay(warm_up=0.1, decay=0.5), 100)
    assert found[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert found[10:56] == pytest.approx([1.0] * 46)
    assert found[55] == pytest.approx(1.0)
    assert found[77] == pytest.approx((1 - 67 / 90) / 0.5)
    assert found[100] == pytest.approx(0.0, abs=1e-12)
    warm = rates(schedules.cosine(warm_up=0.2), 50)
    assert warm[9] == pytest.approx(10 / 11)
    assert warm[30] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))


def test_text_becomes_codes_and_windows() -> None:
    text = "if x:\n\treturn 1 é\n"
    codes = sources.character_codes(text)
    letters = ["\n", *map(chr, range(32, 127)), "?"]
    back = "".join(letters[code] for code in codes.tolist())
    assert back == "if x:\n?return 1 ?\n".replace("?return", letters[96] + "return")
    pieces = sources.piece_codes("a = a + bb\n", 3)  # ' ' four times, 'a' twice, the rest is 0
    assert pieces.tolist() == [2, 1, 0, 1, 2, 1, 0, 1, 0, 0]
    train, val = sources.windows(torch.arange(103), 4, 5)
    rows = torch.cat([train.columns[0], val.columns[0]])
    assert rows.shape == (20, 5)
    assert sorted(rows.flatten().tolist()) == list(range(100))  # none is in two windows
    with pytest.raises(RlbatchError, match="no files nowhere/"):
        sources.library_text("nowhere/*.py")


def test_fingerprints_follow_what_is_trained() -> None:
    from dataclasses import replace
    from functools import partial

    job = field_job("mixed-table")
    assert job.fingerprint() == field_job("mixed-table").fingerprint()
    others = [
        replace(job, epochs=7),
        replace(job, scheduler=schedules.cosine()),
        replace(job, optimizer=partial(SGD, lr=0.1)),
        replace(job, model=lambda: nn.Linear(1, 1)),
        replace(job, tables=field_job("wide-table").tables),
    ]
    assert len({job.fingerprint(), *(other.fingerprint() for other in others)}) == 6
