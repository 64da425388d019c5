"""Properties of the shipped policies on recorded runs: what a decision may not depend on."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from rlbatch.control.build import fallback_for
from rlbatch.control.engine import DecisionEngine, EngineConfig
from rlbatch.control.limits import Limits
from rlbatch.errors import PolicyFileError
from rlbatch.inspect.reading import read_log
from rlbatch.inspect.replay import run_context, signals_of, was_decided
from rlbatch.observation import OBSERVATION_SIZE, SCHEMA_VERSION
from rlbatch.policy import file
from rlbatch.policy.base import Policy
from rlbatch.policy.registry import FOR_EPOCHS, PRETRAINED, pretrained_file, resolve_policy
from rlbatch.signals.record import RunContext, Signals
from tests.golden import recordings

EXAMPLE = Path(__file__).parents[3] / "docs" / "example-log"
POLICIES = {name: resolve_policy(name) for name in (*PRETRAINED, FOR_EPOCHS)}
Run = list[Signals]


def example() -> Run:
    log = read_log(EXAMPLE)
    context = run_context(log.run)
    return [signals_of(record, context) for record in log.records if was_decided(record)]


RUNS: dict[str, Run] = {
    "example-log": example(),
    **{
        path.stem: recordings.unstack(dict(np.load(path)))
        for path in sorted(recordings.DATA.glob("signals-*.npz"))
    },
}
SINGLE = [name for name in RUNS if name == "example-log" or "live" in name]


@pytest.fixture(params=sorted(RUNS))
def run(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> str:
    return request.param


def with_context(run: Run, **constants: Any) -> Run:
    return [replace(chunk, context=replace(chunk.context, **constants)) for chunk in run]


def of_size(run: Run, dataset_size: float) -> Run:
    """The run on a data set of another size, with the limits that a controller then sets."""
    base = np.asarray(run[0].context.base_batch_size, dtype=np.float64)
    bounds = Limits().bounds
    high = [bounds(round(b), round(dataset_size), may_shrink=True)[1] for b in base.ravel()]
    highest = np.reshape(np.asarray(high, dtype=np.float64), base.shape)
    return with_context(run, dataset_size=dataset_size + 0.0 * base, max_batch_size=highest)


def in_unit(run: Run, seconds: float) -> Run:
    """The run with its cost in another unit."""
    return [
        replace(
            chunk,
            chunk_cost=chunk.chunk_cost / seconds,
            total_cost=chunk.total_cost / seconds,
            step_cost_curve=chunk.step_cost_curve - np.log2(seconds),
            context=replace(chunk.context, budget=chunk.context.budget / seconds),
        )
        for chunk in run
    ]


def scaled_loss(run: Run, factor: float, *, target: bool = True) -> Run:
    """The run with its loss multiplied, and a learning rate of SGD that makes up for it.

    Gradients grow by the factor; their squares in Adam's metric, over the root of a mean square, by
    the factor too, and plain ones by its square.
    """
    squares = (*("grad_sqr", "grad_sqr_se", "noise_trace", "noise_trace_se"),)
    losses = ("train_loss", "train_loss_std", "val_loss", "predicted_decrease")
    scaled: Run = []
    for chunk in run:
        adaptive = np.asarray(chunk.context.adaptive) > 0
        square = np.where(adaptive, factor, factor**2)
        values = {name: getattr(chunk, name) * factor for name in losses}
        values |= {name: (getattr(chunk, name) * square)[()] for name in squares}
        context = chunk.context
        if target:
            context = replace(context, target_loss=context.target_loss * factor)
        scaled.append(replace(chunk, context=context, **values))
    return scaled


CHANGES: dict[str, Callable[[Run, float], Run]] = {
    "size": of_size,
    "unit": in_unit,
    "loss": scaled_loss,
}


@functools.cache
def seen(run: str, change: str | None = None, value: float = 1.0) -> tuple[Run, np.ndarray]:
    """A recorded run, as it is or changed, and its observations: the same for every policy."""
    signals = RUNS[run] if change is None else CHANGES[change](RUNS[run], value)
    vectors = recordings.observations(signals)
    vectors.setflags(write=False)
    return signals, vectors


@functools.cache
def decided(policy: str, run: str, change: str | None = None, value: float = 1.0) -> np.ndarray:
    """The changes of the batch size that a policy asks for, shape (chunks, ...)."""
    return recordings.changes(POLICIES[policy], *seen(run, change, value))


@pytest.mark.parametrize("dataset_size", [1e5, 1e7, 1e10])
def test_the_size_of_the_data_set_does_not_matter(
    run: str, policy: str, dataset_size: float
) -> None:
    base = float(np.max(RUNS[run][0].context.base_batch_size))
    least = max(2_000.0, 64 * base)  # below, an epoch or the largest batch is a part of the run

    np.testing.assert_array_equal(
        decided(policy, run, "size", max(dataset_size, least)), decided(policy, run, "size", least)
    )


@pytest.mark.parametrize("unit", [1e-3, 3600.0, 7.3e8], ids=["ms", "h", "odd"])
def test_the_unit_of_the_clock_does_not_matter(run: str, policy: str, unit: float) -> None:
    np.testing.assert_array_equal(decided(policy, run, "unit", unit), decided(policy, run))


@pytest.mark.parametrize("factor", [10.0, 1e-4, 3e5])
def test_the_scale_of_the_loss_does_not_matter(run: str, policy: str, factor: float) -> None:
    np.testing.assert_array_equal(decided(policy, run, "loss", factor), decided(policy, run))


@pytest.mark.parametrize(
    "change",
    [
        lambda run: of_size(run, 64.0),
        lambda run: [replace(chunk, chunk_cost=chunk.chunk_cost * 1e3) for chunk in run],
        lambda run: scaled_loss(run, 10.0, target=False),
    ],
    ids=["tiny-data", "one-cost-only", "loss-without-target"],
)
def test_what_does_matter_shows_in_the_observations(change: Callable[[Run], Run]) -> None:
    """The tests above can fail: half of each change is seen."""
    recorded = RUNS["signals-live-1"]

    now = recordings.observations(change(recorded))

    assert np.abs(now - recordings.observations(recorded)).max() > 0.1


@pytest.mark.parametrize("name", PRETRAINED)
def test_features_are_found_by_their_names(name: str, tmp_path: Path) -> None:
    """A file of an earlier schema lists a part of today's features, in any order."""
    order = np.random.default_rng(0).permutation(OBSERVATION_SIZE)
    shuffled = load_shuffled(name, order[1:], 2, tmp_path / "shuffled.safetensors")
    vectors = recordings.observations(RUNS["signals-simulated"])
    vectors[..., order[0]] = 0.0

    for chunk, vector in zip(RUNS["signals-simulated"], vectors, strict=True):
        state = shuffled.initial_state((vector.shape[0],))
        got, _ = shuffled.decide(vector, chunk, state)
        wanted, _ = POLICIES[name].decide(vector, chunk, state)
        np.testing.assert_array_equal(got.log2_change, wanted.log2_change)


def test_another_order_of_all_features_is_refused(tmp_path: Path) -> None:
    order = np.arange(OBSERVATION_SIZE)[::-1]
    with pytest.raises(PolicyFileError, match="their order"):
        load_shuffled("default", order, SCHEMA_VERSION, tmp_path / "shuffled.safetensors")


def load_shuffled(name: str, order: np.ndarray, schema: int, path: Path) -> Policy:
    """Write a shipped policy's file with these features in this order, and load that."""
    source = pretrained_file(name)
    raw = source.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    metadata: dict[str, str] = json.loads(raw[8 : 8 + length])["__metadata__"]
    tensors = load_file(source)
    for key, value in tensors.items():
        if key.endswith(".0.weight"):
            tensors[key] = np.ascontiguousarray(value[:, order])
    for key in ("observation_names", "observation_low", "observation_high"):
        values = json.loads(metadata[key])
        metadata[key] = json.dumps([values[place] for place in order] if values else [])
    sizes: list[dict[str, list[int]]] = json.loads(metadata["layer_sizes"])
    for net in (net for member in sizes for net in member.values()):
        net[0] = len(order)
    metadata |= {"layer_sizes": json.dumps(sizes), "schema_version": json.dumps(schema)}
    del metadata["checksum"]
    metadata["checksum"] = json.dumps(file._checksum(metadata, tensors))
    path.write_bytes(save(tensors, metadata))
    return file.load_policy(path)


def test_states_are_found_by_their_names() -> None:
    recorded = RUNS["signals-live-0"]
    whole, first = DecisionEngine(POLICIES["default"]), DecisionEngine(POLICIES["default"])
    expected = [whole.decide(chunk).batch_size for chunk in recorded]
    got = [first.decide(chunk).batch_size for chunk in recorded[:9]]
    state = first.state_dict()
    state["encoder"] = dict(reversed(list(state["encoder"].items())))
    second = DecisionEngine(POLICIES["default"])
    second.load_state_dict(state)

    assert got + [second.decide(chunk).batch_size for chunk in recorded[9:]] == expected
    assert len(state["encoder"]) > 40


_TINY, _HUGE = 1e-300, 1e300
# Every field of the context, and what it may be at its ends.
EXTREMES: dict[str, tuple[float, ...]] = {
    "base_batch_size": (1.0, 2.0**24),
    "min_batch_size": (1.0,),
    "max_batch_size": (2.0**40,),
    "dataset_size": (1.0, 1e15),
    "learning_rate": (0.0, _TINY, _HUGE),
    "momentum": (0.0, 0.999999, 1.0),
    "adaptive": (0.0, 1.0),
    "coupling_exponent": (0.0, 1.0),
    "adascale": (0.0, 1.0),
    "target_loss": (_TINY, _HUGE, np.nan),
    "budget": (_TINY, _HUGE, np.nan),
    "weight_seconds": (0.0, 1.0),
    "weight_samples": (0.0, 1.0),
    "weight_joules": (0.0, 1.0),
    "planned_samples": (1.0, 1e18, _HUGE, np.nan),
}


def test_every_field_of_the_context_has_extremes() -> None:
    assert set(EXTREMES) == set(RunContext.__dataclass_fields__)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(POLICIES)),
    recorded=st.sampled_from(SINGLE),
    constants=st.dictionaries(st.sampled_from(sorted(EXTREMES)), st.integers(0, 99), min_size=1),
)
def test_extremes_of_the_context_give_finite_decisions(
    name: str, recorded: str, constants: dict[str, int]
) -> None:
    chosen = {key: EXTREMES[key][place % len(EXTREMES[key])] for key, place in constants.items()}
    policy = POLICIES[name]
    engine = DecisionEngine(policy, EngineConfig(fallback=fallback_for(policy)))

    for chunk in with_context(RUNS[recorded], **chosen):
        made = engine.decide(chunk)
        low, high = chunk.context.min_batch_size, chunk.context.max_batch_size
        assert low <= made.batch_size <= high
        assert np.isfinite(made.requested_log2_change)
        assert np.isfinite(made.observation).all()
        assert np.abs(made.observation).max() <= 1.0
