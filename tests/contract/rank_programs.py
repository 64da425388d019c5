"""Situations that only several ranks have, or that other files try on one: see `situations.py`."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler

from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.testing import ScriptedPolicy
from tests.contract.programs import BASE, Rows, error, flat, gradient_of_all, network
from tests.contract.situations import (
    GROW,
    Host,
    Measuring,
    Run,
    Situation,
    adam,
    plain_mean,
    silence,
    still,
    tokens_of_some,
)
from tests.contract.test_divided_losses import class_weights, dice, info_nce, triplet

CHUNKS: dict[str, Any] = {f"{name}_chunk_steps": 2 for name in ("first", "min", "max")}

# -- losses --


def batches_that_fit(host: Host) -> None:
    """Each step's gradient is the mean of what the ranks' own losses give, by autograd alone."""
    for own_loss in (class_weights, tokens_of_some, dice, info_nce, triplet):
        run, wanted = Run(host, make=still, policy=GROW), list[Tensor]()

        def loss(
            model: nn.Module, batch: Any, own_loss: Any = own_loss, wanted: Any = wanted
        ) -> Tensor:
            found = host.gather((len(batch[0]), gradient_of_all(network(), own_loss, batch)))
            total = sum(count for count, _ in found)
            wanted.append(torch.stack([count / total * g for count, g in found]).sum(0))
            return own_loss(model, batch)

        with silence():
            run.train(loss, epochs=2)
        assert max(map(len, run.steps)) >= 4 * BASE
        assert max(map(error, run.gradients, wanted)) < 1e-12


def parts_without_weight(host: Host) -> None:
    """Class weights: rows of a class that weighs 0 fill whole parts, and whole ranks' shares."""
    rare = torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0], dtype=torch.float64)

    def own(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[1]).mean(1), batch[2], weight=rare)

    def finite(model: nn.Module, batch: Any) -> Tensor:
        """As FSDP needs it: 0 in place of 0 / 0."""
        return own(model, batch) if bool(rare[batch[2]].any()) else model(batch[1]).sum() * 0.0

    loss = finite if getattr(host, "kind", "") == "fsdp" else own
    for limit in (None, 2):
        run = Run(host, make=still, policy=GROW, micro_batch_size=limit)
        step: list[int] = []
        for _ in range(2):
            for batch in run.loader:
                step += batch[0].tolist()
                run.controller.backward(loss(run.model, batch), weight=rare[batch[2]].sum())
                if run.controller.step():
                    run.steps.append([i for part in host.gather(step) for i in part])
                    step = []
        compared = 0
        for rows, found in zip(run.steps, run.gradients, strict=True):
            batch = run.data.batch(rows)
            if bool(rare[batch[2]].any()):
                assert error(found, gradient_of_all(network(), own, batch)) < 1e-12
                compared += 1
            else:
                assert not bool(found.any())
        assert compared > 4


def a_loss_of_nothing_on_shards(host: Any) -> None:
    if host.kind != "fsdp":
        return  # there such a part may be no number, see above
    run = Run(host)
    with host.refuses(DeliveryError, "weight is 0 has a loss that is not finite"):
        for batch in run.loader:
            run.controller.backward(plain_mean(run.model, batch) * math.nan, weight=0)


class Zeroed(nn.Module):
    """A model with a parameter whose term is multiplied by 0."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = network(), nn.Parameter(torch.ones(3, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) + 0.0 * self.unused.sum()


def a_term_times_zero(host: Host) -> None:
    for limit in (None, 2):
        run = Run(host, Zeroed(), adam, policy=GROW, micro_batch_size=limit)
        with silence():
            run.train()
        plain, optimizer = Zeroed(), None
        optimizer = adam(plain)
        for rows in run.steps:
            plain_mean(plain, run.data.batch(rows)).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert error(run.weights, flat(list(plain.parameters()))) < 1e-12


# -- batches --


def normalised() -> nn.Module:
    first, *others = network().children()
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(42), nn.Unflatten(1, (7, 6)))
    return nn.Sequential(norm.double(), first, *others)


def no_rest_of_one(host: Host) -> None:
    """Of 133 samples in steps of 44 one would be left, of 135 three, of 35 at 32 three."""
    for samples, base, size in ((133, 8, 44), (135, 8, 44), (35, 32, 32)):
        policy = ScriptedPolicy((math.log2(size / base),)) if size != base else "fixed"
        run = Run(host, normalised(), samples=samples, base=base, policy=policy)
        shares: list[int] = []
        run.train(before=lambda run, _, s=shares: s.append(run.controller.delivered.micro_size))
        run.train(before=lambda run, _, s=shares: s.append(run.controller.delivered.micro_size))
        assert sorted(i for step in run.steps for i in step) == sorted(2 * list(range(samples)))
        assert min(shares) > 1
        assert size == base or max(map(len, run.steps)) >= 40


def steps_that_keep_within_what_fits(host: Host) -> None:
    """Of 75 samples in steps of 16 a rest of 3 or less is left: two smaller steps, none larger."""
    for samples in (75, 67, 65):
        limit = 2 * BASE // host.world_size
        run = Run(host, samples=samples, policy=GROW, micro_batch_size=limit, divisible=False)
        run.train(dice, epochs=3)
        assert max(map(len, run.steps)) == 2 * BASE
        assert sorted(i for step in run.steps for i in step) == sorted(3 * list(range(samples)))


def samplers_with_replacement(host: Host) -> None:
    """Drawn from a generator that all ranks seed alike: what it draws is seen, in its order."""
    data = Rows(76)
    sampler = RandomSampler(data, replacement=True, generator=torch.Generator().manual_seed(4))
    run = Run(host, sampler=sampler, policy=GROW).train(epochs=2)
    alone = RandomSampler(data, replacement=True, generator=torch.Generator().manual_seed(4))
    drawn = [*alone, *alone]
    assert [i for step in run.steps for i in step] == drawn


class Nested(Dataset[Any]):
    """Rows in batches of nested kinds."""

    def __init__(self) -> None:
        self.rows = Rows(76)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        _, x, kind, _ = self.rows[index]
        return {"index": index, "pair": (x, {"kind": kind, "text": str(index)})}


def nested_batches(host: Host) -> None:
    run, seen = Run(host), list[int]()
    run.controller.close()
    controller = host.control(run.model, run.optimizer, batch_size=BASE, policy=GROW)
    for batch in controller.loader(host.source(Nested(), BASE)):
        x, more = batch["pair"]
        assert more["text"] == [str(i) for i in batch["index"].tolist()]
        controller.backward(nn.functional.cross_entropy(run.model(x).mean(1), more["kind"]))
        controller.step()
        seen += batch["index"].tolist()
    assert sorted(i for own in host.gather(seen) for i in own) == list(range(76))


def one_sample_for_two(host: Host) -> None:
    with host.refuses(ConfigurationError, "at least one sample an epoch for each of 2 ranks"):
        Run(host, samples=1, base=2, policy="fixed").train()


# -- runs --


def a_fixed_size(host: Host) -> None:
    """The plain loop on the same ranks, where it gives all ranks as many samples."""

    def plain(make: Callable[[Any], Any]) -> Tensor:
        model, optimizer = host.prepare(network(), make)
        sampler: Any = DistributedSampler(Rows(80), host.world_size, seed=3)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            for batch in DataLoader(Rows(80), BASE // host.world_size, sampler=sampler):
                plain_mean(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
        return torch.cat([host.whole(p) for p in model.parameters()])

    for make in (adam, lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9)):
        sampler: Any = DistributedSampler(Rows(80), host.world_size, seed=3)
        run = Run(host, make=make, samples=80, sampler=sampler)
        for epoch in range(3):
            run.loader.set_epoch(epoch)
            run.train()
        # As many samples on each rank, but others of the step: sums are rounded otherwise.
        assert error(run.weights, plain(make)) < 1e-12


def a_model_saved_within_a_measured_step(host: Host) -> None:
    def saving(model: Any, batch: Any) -> Tensor:
        file = io.BytesIO()
        inner = getattr(model, "module", None)  # of a DistributedDataParallel
        torch.save(model.state_dict() if inner is None else inner, file)
        assert b"rlbatch" not in file.getvalue()
        return plain_mean(model, batch)

    ends = [
        Run(host, policy=policy, noise_rate=5.0).train(loss).weights
        for policy, loss in (("fixed", plain_mean), (Measuring((0.0,) * 50), saving))
    ]
    assert torch.equal(*ends)


def a_rate_set_late_by_hand(host: Host) -> None:
    steps: Iterator[int] = iter(range(1000))

    def lower(run: Run, _: int) -> None:
        run.inner.param_groups[0]["lr"] = 0.01 * 0.9 ** max(next(steps) - 4, 0)

    with pytest.warns(RuntimeWarning, match=r"controller\.plain_steps"):
        Run(host, policy=GROW).train(after=lower, epochs=2)


def loader_workers(host: Any) -> None:
    """They prefetch in the sizes of then; each epoch has every sample once, also where resumed."""

    def begin(persistent: bool) -> Run:
        settings = {"policy": ScriptedPolicy((1.0, 0.6, -2.0, 1.5) * 3), "micro_batch_size": 5}
        run = Run(host, **settings)
        run.controller.close()
        told = {**settings, **CHUNKS, "cost": "samples", "lr_coupling": "none"}
        run.controller = host.control(run.model, run.optimizer, batch_size=BASE, **told)
        sampler: Any = DistributedSampler(run.data, host.world_size, host.rank, seed=3)
        workers = {"num_workers": 2, "persistent_workers": persistent}
        loader = DataLoader(
            run.data, BASE // host.world_size, sampler=sampler, multiprocessing_context="fork",
            **workers,
        )  # fmt: skip
        run.loader = run.controller.loader(loader)
        return run

    def train(run: Run, until: int = -1) -> Run:
        while run.loader.sampler.epoch < 2 and run.controller.steps != until:
            run.loader.set_epoch(run.loader.sampler.epoch)
            run.train(until=until)
        return run

    for persistent, stop in ((False, 3), (True, 7)):
        whole = train(begin(persistent))
        order = [row for step in whole.steps for row in step]
        assert [sorted(order[:76]), sorted(order[76:])] == [list(range(76))] * 2
        assert len(set(map(len, whole.steps))) > 3
        first = train(begin(persistent), stop)
        assert first.loader.sampler.position
        second = begin(persistent)
        second.controller.load_state_dict(first.controller.state_dict())
        assert first.steps + train(second).steps == whole.steps
        assert len(first.steps) == stop


def a_graph_that_is_kept(host: Host) -> None:
    ends: list[Tensor] = []
    for told in ({}, {"retain_graph": True}):
        run = Run(host, policy=Measuring((1.0, 0.6, -2.0) * 3), micro_batch_size=3, noise_rate=5.0)
        usual = run.controller.backward
        run.controller.backward = lambda loss, usual=usual, told=told: usual(loss, **told)
        ends.append(run.train(epochs=2).weights)
        assert len(set(map(len, run.steps))) > 2
        with host.refuses(ConfigurationError, "does not pass create_graph on"):
            usual(torch.zeros(()), create_graph=True)
    assert torch.equal(*ends)


def a_schedule_stepped_before_the_optimizer(host: Host) -> None:
    """Each step has the next one's rate, as in the plain loop: by the closed form."""
    run = Run(host)
    first = run.inner.param_groups[0]["lr"]
    taken = run.controller.schedule(ExponentialLR(run.inner, 0.9))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of .lr_scheduler")
        run.train(epochs=2, behind=lambda *_: taken.step())
    assert run.rates == pytest.approx([first * 0.9 ** (n + 1) for n in range(len(run.rates))])
    assert len(run.rates) == 2 * -(-76 // BASE)


def numbers_of_numpy(host: Host) -> None:
    told = {"policy": ScriptedPolicy((1.0, 0.6, -2.0)), "min_batch_size": 4}
    one, other = (
        Run(host, micro_batch_size=micro, max_batch_size=most, **told).train(epochs=2)
        for micro, most in ((3, 32), (np.int8(3), torch.tensor(32)))
    )
    assert one.steps == other.steps
    assert torch.equal(one.weights, other.weights)


# -- what one rank alone has --


def data_of_different_length(host: Any) -> None:
    with host.refuses(ConfigurationError, "same samples_of_an_epoch on every rank, got 74 to 75"):
        Run(host, samples=75 - host.rank)


def settings_that_differ(host: Any) -> None:
    with host.refuses(ConfigurationError, "same micro_batch_size on every rank, got 2 to 3"):
        Run(host, micro_batch_size=2 + host.rank)


def a_state_that_one_rank_refuses(host: Any) -> None:
    """Whatever is wrong with it: the other is told, nothing is taken, and both can go on."""
    policy = ScriptedPolicy((1.0, 0.6, -2.0, 1.5))
    saved = Run(host, policy=policy).train().controller.state_dict()
    fresh = Run(host, policy=policy)
    before = str(fresh.controller.state_dict())
    damages: list[Any] = [{}, None, {**saved, "loader": None}, {**saved, "control_loop": {}},
                          {**saved, "plain_steps": 3}, {**saved, "base_batch_size": 4}]  # fmt: skip
    for victim in range(host.world_size):
        for damaged in damages:
            with pytest.raises(ConfigurationError) as caught:
                fresh.controller.load_state_dict(damaged if victim == host.rank else saved)
            told = "Another rank could not load its state" in str(caught.value)
            assert told == (victim != host.rank)
    assert str(fresh.controller.state_dict()) == before
    assert fresh.train().steps == Run(host, policy=policy).train().steps


PROGRAMS: tuple[Situation, ...] = (
    batches_that_fit,
    parts_without_weight,
    a_loss_of_nothing_on_shards,
    a_term_times_zero,
    no_rest_of_one,
    steps_that_keep_within_what_fits,
    samplers_with_replacement,
    nested_batches,
    one_sample_for_two,
    a_fixed_size,
    a_model_saved_within_a_measured_step,
    a_rate_set_late_by_hand,
    loader_workers,
    a_graph_that_is_kept,
    a_schedule_stepped_before_the_optimizer,
    numbers_of_numpy,
    data_of_different_length,
    settings_that_differ,
    a_state_that_one_rank_refuses,
)
