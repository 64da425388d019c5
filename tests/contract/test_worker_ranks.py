"""Loader workers on two processes, in Accelerate, Lightning and Transformers.

The plain loop on ranks: `loader_workers` in `rank_programs.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("lightning")
pytest.importorskip("transformers")

from tests.contract.worker_ranks import Job
from tests.rlbatch.integrations.torchrun import launch

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

FRAMEWORKS = ("accelerate", "lightning", "transformers")
SAMPLES, EPOCHS, STOP = 75, 3, 7  # the last: a step within the second epoch
SCRIPT = [1.0, 0.6, -2.0, 1.5, -1.0, 1.0]
KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "two": {"workers": 2},
    "persistent": {"workers": 2, "persistent": True},
}
Seen = dict[str, list[dict[str, Any]]]


def told(framework: str, kind: str, script: list[float], *, saves: bool) -> dict[str, Any]:
    """Return the fields of a framework's own job."""
    workers = KINDS[kind]
    settings = {"settings": {"micro_batch_size": 5}} if script else {}
    common = {"script": script, "samples": SAMPLES, **settings}
    if framework == "accelerate":
        return {**common, **workers, "shuffle": True, "saves": [STOP] if saves else []}
    if framework == "lightning":
        return {**common, **workers, "save_at": [STOP] if saves else []}
    args: dict[str, Any] = {"num_train_epochs": EPOCHS}
    if workers:
        args["dataloader_num_workers"] = workers["workers"]
        args["dataloader_persistent_workers"] = workers.get("persistent", False)
    if saves:
        args.update(save_strategy="steps", save_steps=STOP)
    return {**common, "args": args}


def steps_of(ranks: list[dict[str, Any]]) -> list[list[int]]:
    """The samples of each optimizer step, on both processes."""
    if ranks[0]["gathered"]:
        return ranks[0]["steps"]
    both = zip(*(rank["steps"] for rank in ranks), strict=True)
    return [[*one, *other] for one, other in both]


def jobs() -> list[Job]:
    made: list[Job] = []
    for framework in FRAMEWORKS:
        for kind in KINDS:
            fixed = told(framework, kind, [], saves=False)
            made.append(Job(f"{framework} {kind} fixed", framework, fixed))
            if kind == "none":
                continue
            name = f"{framework} {kind} changing"
            made.append(Job(name, framework, told(framework, kind, SCRIPT, saves=True)))
            again = told(framework, kind, SCRIPT, saves=False)
            made.append(Job(f"{name} again", framework, again, name))
    return made


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return launch(jobs(), tmp_path_factory.mktemp("workers"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["two", "persistent"])
def test_a_fixed_size_is_the_run_without_workers(seen: Seen, framework: str, kind: str) -> None:
    without, with_them = (seen[f"{framework} {name} fixed"] for name in ("none", kind))
    assert len(steps_of(without)) > 2 * EPOCHS
    for one, other in zip(without, with_them, strict=True):
        assert one["steps"] == other["steps"]
        assert len(one["values"]) == len(one["steps"])
        assert all(map(torch.equal, one["values"], other["values"]))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["two", "persistent"])
def test_each_epoch_has_every_sample_once(seen: Seen, framework: str, kind: str) -> None:
    steps = steps_of(seen[f"{framework} {kind} changing"])
    assert len({len(step) for step in steps}) > 3
    order = [row for step in steps for row in step]
    assert len(order) == SAMPLES * EPOCHS
    for epoch in range(EPOCHS):
        assert sorted(order[SAMPLES * epoch : SAMPLES * (epoch + 1)]) == list(range(SAMPLES))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["two", "persistent"])
def test_resumed_within_an_epoch_it_goes_on_alike(seen: Seen, framework: str, kind: str) -> None:
    """Also the sizes of what workers had prefetched."""
    name = f"{framework} {kind} changing"
    whole, again = seen[name], seen[f"{name} again"]
    behind = again[0]["behind"]
    assert sum(map(len, steps_of(whole)[:behind])) % SAMPLES
    assert steps_of(again) == steps_of(whole)[behind:]
    assert len(steps_of(again)) > 2
    for one, other in zip(whole, again, strict=True):
        assert all(map(torch.equal, one["values"][behind:], other["values"]))
