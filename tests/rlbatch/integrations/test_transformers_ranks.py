"""The controlled Trainer on two processes of torchrun, against the Trainer on the same two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from rlbatch.errors import ConfigurationError
from rlbatch.log.episode_log import read_episode
from tests.rlbatch.integrations.torchrun import launch
from tests.rlbatch.integrations.transformers_ranks import (
    Job,
    flat,
    make_data,
    make_model,
    replayed,
    rows_of,
    run,
    squares,
    tokens,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore:rlbatch. rank . resumes within a chunk:RuntimeWarning"),
]

GROW = (1.0, 0.6, -2.0, 1.5, -1.0, 1.0)
USUAL: dict[str, Any] = {
    "optim": "adamw_torch",
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "learning_rate": 3e-3,
    "eval_strategy": "epoch",
}
SAVES: dict[str, Any] = {**USUAL, "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 2}
ODD: dict[str, Any] = {"script": GROW, "samples": 75}
# Sizes and rests that one process and two can have.
EVEN: dict[str, Any] = {"script": (1.0, -1.0, 1.0, 1.0, -2.0), "settings": {"lr_coupling": "sqrt"}}
# Checkpoints within chunks and between them.
BITS: dict[str, Any] = {
    "bits": True,
    "samples": 75,
    "args": {**SAVES, "save_steps": 3},
    "settings": {"micro_batch_size": 5, "noise_rate": 2.0, "lr_coupling": "adascale"},
    "dropout": 0.2,
}
TOKENS: dict[str, Any] = {"kind": "tokens", "samples": 50, "args": {"num_train_epochs": 1}}

JOBS = [
    Job("plain", script=None, args=USUAL),
    Job("fixed", args=USUAL),
    Job("plain4", script=None, args={**USUAL, "gradient_accumulation_steps": 2}),
    Job("fixed4", args={**USUAL, "gradient_accumulation_steps": 2}),
    Job("odd", **ODD, args={"num_train_epochs": 3}),
    Job("odd3", **ODD, settings={"micro_batch_size": 3}),
    Job("schedule", **ODD, args={"lr_scheduler_type": "cosine", "warmup_steps": 4, "max_steps": 9}),
    Job("saves", **ODD, args=SAVES, settings={"lr_coupling": "sqrt"}, dropout=0.2),
    Job("bits", **BITS),
    Job("bits shards", **BITS, shards=True),
    Job("still", **EVEN, args=SAVES),
    Job("still odd", **ODD, args=SAVES),
    Job("plain shards", script=None, args=USUAL, shards=True),
    Job("fixed shards", args=USUAL, shards=True),
    Job("odd shards", **ODD, settings={"micro_batch_size": 3}, shards=True),
    Job("saves shards", **ODD, args=SAVES, dropout=0.2, shards=True),
    Job("plain tokens", **{**TOKENS, "samples": 48}, script=None),
    Job("fixed tokens", **{**TOKENS, "samples": 48}),
    *(
        Job(f"tokens {loss} {micro}", **TOKENS, loss=loss, settings={"micro_batch_size": micro})
        for loss in ("model", "mean")
        for micro in (8, 3)
    ),
    Job(
        "own tokens",
        **{**TOKENS, "args": {"num_train_epochs": 1, "average_tokens_across_devices": False}},
        settings={"micro_batch_size": 3},
    ),
]
Seen = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def seen(folder: Path) -> Seen:
    return launch(JOBS, folder)


# -- the plain run --


@pytest.mark.parametrize("how", ["", " shards"])
def test_fixed_is_the_trainer_on_the_same_processes_bit_for_bit(seen: Seen, how: str) -> None:
    for plain, fixed in zip(seen[f"plain{how}"], seen[f"fixed{how}"], strict=True):
        assert plain["sharded"] == fixed["sharded"] == bool(how)
        assert plain["batches"] == fixed["batches"]
        assert all(map(torch.equal, plain["weights"], fixed["weights"]))
        for what in ("history", "rates", "epochs", "steps", "max_steps"):
            assert plain[what] == fixed[what]


def test_with_accumulation_it_is_the_trainers_up_to_rounding(seen: Seen) -> None:
    """A process has neighbouring samples, and not every second micro-batch."""
    plain, fixed = seen["plain4"], seen["fixed4"]
    assert [sorted(r) for r in rows_of(plain)] == [sorted(r) for r in rows_of(fixed)]
    for one, other in zip(plain, fixed, strict=True):
        torch.testing.assert_close(one["weights"], other["weights"], rtol=1e-9, atol=1e-12)
        assert one["rates"] == other["rates"]
        assert one["epochs"] == other["epochs"]
        for line, same in zip(one["history"], other["history"], strict=True):
            assert {**line, "batch_size": 0} == pytest.approx({**same, "batch_size": 0}, rel=1e-6)


def test_a_language_model_is_the_trainers_bit_for_bit(seen: Seen) -> None:
    for plain, fixed in zip(seen["plain tokens"], seen["fixed tokens"], strict=True):
        assert plain["batches"] == fixed["batches"]
        assert all(map(torch.equal, plain["weights"], fixed["weights"]))
        assert plain["history"] == fixed["history"]


# -- all samples, and their gradient --


@pytest.mark.parametrize("name", ["odd", "odd3", "saves", "odd shards", "saves shards"])
def test_an_epoch_has_every_sample_once_over_all_processes(seen: Seen, name: str) -> None:
    rows = rows_of(seen[name])
    assert len({len(step) for step in rows}) > 3
    order = [row for step in rows for row in step]
    assert len(order) % 75 == 0
    for start in range(0, len(order), 75):
        assert sorted(order[start : start + 75]) == list(range(75))
    if name == "odd3":
        assert max(len(part) for step in seen[name][0]["batches"] for part in step) == 3


def test_the_processes_agree(seen: Seen) -> None:
    for job in JOBS:
        one, other = seen[job.name]
        assert all(map(torch.equal, one["weights"], other["weights"]))
        assert one["decided"] == other["decided"]
        assert one["rates"] == other["rates"]
        assert one["epochs"] == other["epochs"]


@pytest.mark.parametrize("name", ["odd", "odd3", "odd shards"])
def test_a_steps_gradient_is_that_of_all_its_samples(seen: Seen, name: str) -> None:
    job = next(job for job in JOBS if job.name == name)
    expected = replayed(job, rows_of(seen[name]), squares)
    torch.testing.assert_close(seen[name][0]["weights"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ["model", "mean"])
@pytest.mark.parametrize("micro", [8, 3])
def test_tokens_weigh_the_same_wherever_they_are(seen: Seen, loss: str, micro: int) -> None:
    """Also where a part, or a process, has none: there a mean is no number."""
    name = f"tokens {loss} {micro}"
    job = next(job for job in JOBS if job.name == name)
    rows = rows_of(seen[name])
    counts = [
        [int(make_data(job).labels[part, 1:].ne(-100).sum()) for part in step]
        for rank in seen[name]
        for step in rank["batches"]
    ]
    assert micro == 8 or any(0 in parts for parts in counts)
    expected = replayed(job, rows, tokens)
    # The model computes its own loss in single precision.
    atol = 1e-8 if loss == "model" else 1e-12
    torch.testing.assert_close(seen[name][0]["weights"], expected, rtol=0.0, atol=atol)


def test_tokens_are_counted_a_process_where_the_trainer_is_told_so(seen: Seen) -> None:
    """`average_tokens_across_devices=False`: a mean of the processes' means."""
    job = next(job for job in JOBS if job.name == "own tokens")
    model, data = make_model(job), make_data(job)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    steps = zip(*(rank["batches"] for rank in seen[job.name]), strict=True)
    for step, weights in zip(steps, seen[job.name][0]["weights"], strict=True):
        total = sum(len(part) for own in step for part in own)
        optimizer.zero_grad()
        for own in step:
            samples = [data[row] for part in own for row in part]
            (tokens(model, samples) * (len(samples) / total)).backward()
        optimizer.step()
        torch.testing.assert_close(weights, flat(model), rtol=0.0, atol=1e-8)


# -- counted in samples --


def test_the_schedule_counts_samples_of_all_processes(seen: Seen) -> None:
    from transformers import get_cosine_schedule_with_warmup

    model = make_model(Job(""))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, 4, 9)
    plain = [0.0]
    for _ in range(9):
        optimizer.step()
        schedule.step()
        plain.append(float(schedule.get_last_lr()[0]))
    plain[0] = 0.0
    at = epoch = 0
    for rows, rate in zip(rows_of(seen["schedule"]), seen["schedule"][0]["rates"], strict=True):
        at += len(rows)
        if at == 75:
            at, epoch = 0, epoch + 1
        assert rate == pytest.approx(plain[5 * epoch + at // 16], abs=1e-12)
    assert seen["schedule"][0]["rates"][-1] == pytest.approx(0.0, abs=1e-12)
    assert sum(map(len, rows_of(seen["schedule"]))) == 75 + 4 * 16


def test_rank_0_decides_logs_and_saves(seen: Seen, folder: Path) -> None:
    rows = rows_of(seen["saves"])
    expected = [16] * len(rows)
    for line in read_episode(folder / "saves" / "log").records:
        if line.event == "decision" and line.effective_step is not None:
            expected[line.effective_step :] = [line.batch_size] * (
                len(expected) - line.effective_step
            )
    assert len(set(expected)) > 3
    ends = {i for i, at in enumerate(seen["saves"][0]["epochs"]) if float(at).is_integer()}
    for step, (got, said) in enumerate(zip(map(len, rows), expected, strict=True)):
        assert got == said or step in ends
    saved = sorted((folder / "saves").glob("checkpoint-*"))
    assert saved
    for checkpoint in saved:
        found = {path.name for path in checkpoint.glob("rlbatch*")}
        assert found == {"rlbatch.pt", "rlbatch_rank1.pt"}


# -- going on from a checkpoint --


def within(folder: Path, name: str, seen: Seen) -> list[int]:
    """Checkpoints in the middle of an epoch, but not the first and last, by optimizer steps."""
    epochs = seen[name][0]["epochs"]
    saved = sorted(int(path.name[11:]) for path in (folder / name).glob("checkpoint-*"))
    return [steps for steps in saved[1:-1] if not float(epochs[steps - 1]).is_integer()]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[dict[str, Any]]:
    """The run of `still` in one process, from its beginning."""
    return [run(Job("alone", **EVEN, args={**SAVES, "per_device_train_batch_size": 16}), folder)]


@pytest.fixture(scope="module")
def resumed(folder: Path, seen: Seen, alone: list[dict[str, Any]]) -> Seen:
    place = within(folder, "saves", seen)
    jobs = [
        Job(
            f"again{steps}",
            **ODD,
            args=SAVES,
            settings={"lr_coupling": "sqrt"},
            dropout=0.2,
            resume=str(folder / "saves" / f"checkpoint-{steps}"),
        )
        for steps in (place[0], place[-1])
    ]
    jobs += [
        Job(
            f"{kind} {steps}",
            **BITS,
            shards=kind != "bits",
            resume=str(folder / kind / f"checkpoint-{steps}"),
        )
        for kind, count in (("bits", 5), ("bits shards", 3))
        for steps in within(folder, kind, seen)[:count]
    ]
    steps = within(folder, "saves shards", seen)[0]
    shards = str(folder / "saves shards" / f"checkpoint-{steps}")
    jobs.append(Job(f"shards{steps}", **ODD, args=SAVES, dropout=0.2, resume=shards, shards=True))
    for name, micro in (("same", 8), ("less", 4)):
        steps = within(folder, "alone", {"alone": alone})[0]
        more = str(folder / "alone" / f"checkpoint-{steps}")
        args = {**SAVES, "per_device_train_batch_size": micro}
        jobs.append(Job(f"{name}{steps}", **EVEN, args=args, resume=more))
    return launch(jobs, folder)


def test_two_processes_go_on_as_if_nothing_had_happened(seen: Seen, resumed: Seen) -> None:
    names = [name for name in resumed if name.startswith(("again", "shards"))]
    assert len(names) == 3
    for name in names:
        whole = "saves shards" if name.startswith("shards") else "saves"
        steps = int("".join(filter(str.isdigit, name)))
        for one, again in zip(seen[whole], resumed[name], strict=True):
            for what in ("batches", "rates", "epochs"):
                assert again[what] == one[what][steps:]
            assert all(map(torch.equal, again["weights"], one["weights"][steps:]))


def test_a_policy_of_exact_bits_decides_as_if_nothing_had_happened(
    seen: Seen, resumed: Seen
) -> None:
    names = [name for name in resumed if name.startswith("bits")]
    assert len(names) > 4
    for name in names:
        whole, _, steps = name.rpartition(" ")
        for one, again in zip(seen[whole], resumed[name], strict=True):
            assert again["sharded"] == (whole == "bits shards")
            for what in ("batches", "rates", "epochs"):
                assert again[what] == one[what][int(steps) :]
            assert all(map(torch.equal, again["weights"], one["weights"][int(steps) :]))
    for whole in ("bits", "bits shards"):
        assert len({len(rows) for rows in rows_of(seen[whole])}) > 3


def goes_on(whole: list[dict[str, Any]], again: list[dict[str, Any]], steps: int) -> None:
    """The steps behind a checkpoint have the samples, sizes, rates and weights of the whole run."""
    assert len(rows_of(again)) > 4
    assert rows_of(again) == rows_of(whole)[steps:]
    for what in ("rates", "epochs"):
        assert again[0][what] == pytest.approx(whole[0][what][steps:])
    torch.testing.assert_close(
        again[0]["weights"], whole[0]["weights"][steps:], rtol=1e-8, atol=1e-11
    )


@pytest.mark.parametrize(("name", "micro"), [("same", 8), ("less", 4)])
def test_one_process_becomes_two(
    alone: list[dict[str, Any]], resumed: Seen, name: str, micro: int
) -> None:
    """Batch size 16 is kept, in micro-batches of what the arguments say that fits."""
    found = next(found for found in resumed if found.startswith(name))
    goes_on(alone, resumed[found], int(found[4:]))
    parts = [len(part) for step in resumed[found][0]["batches"] for part in step]
    assert (max(parts) > 8) if micro == 8 else (max(parts) == 4)


def test_two_processes_become_one_with_the_same_arguments(seen: Seen, folder: Path) -> None:
    """The batch size is kept, in micro-batches of `per_device_train_batch_size`."""
    for steps in within(folder, "still", seen)[:2]:
        resume = str(folder / "still" / f"checkpoint-{steps}")
        again = [run(Job(f"less{steps}", **EVEN, args=SAVES, resume=resume), folder)]
        goes_on(seen["still"], again, steps)
        assert max(len(part) for step in again[0]["batches"] for part in step) == 8


def test_no_sample_is_lost_where_one_process_rounds_elsewise(seen: Seen, folder: Path) -> None:
    rows = rows_of(seen["still odd"])
    for steps in within(folder, "still odd", seen)[:2]:
        resume = str(folder / "still odd" / f"checkpoint-{steps}")
        again = [run(Job(f"rest{steps}", **ODD, args=SAVES, resume=resume), folder)]
        found = [row for step in rows_of(again) for row in step]
        assert found == [row for step in rows[steps:] for row in step]
        assert len(rows_of(again)[0]) == len(rows[steps])
        assert again[0]["rates"][-1] == seen["still odd"][0]["rates"][-1]
        assert again[0]["epochs"][-1] == 4.0


def test_three_processes_cannot_share_sixteen_samples(
    seen: Seen, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlbatch.integrations import _transformers_state

    read = _transformers_state.SavedRun.read
    odd = {"controller": {"base_batch_size": 15, "loader": {"epoch": 0, "complete": False}}}
    kind = _transformers_state.SavedRun
    monkeypatch.setattr(kind, "read", lambda *_: kind(odd["controller"], None, 3))
    assert read is not kind.read
    from rlbatch.integrations._transformers_run import TrainRun

    class Args:
        process_index, world_size, gradient_accumulation_steps = 0, 2, 1

    class Told:
        args, _train_batch_size = Args, 8

    with pytest.raises(ConfigurationError, match="batch size 15 cannot be shared by 2 processes"):
        TrainRun(Told, None, "folder")
