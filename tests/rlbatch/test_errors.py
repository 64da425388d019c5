"""The tree of errors: what they say, and that they survive the way between processes."""

from __future__ import annotations

import multiprocessing
import pickle

import pytest

from rlbatch.errors import (
    ClusterError,
    ConfigurationError,
    DeliveryError,
    EpisodeLogError,
    MemoryUsedUpError,
    MissingExtraError,
    PolicyFileError,
    RlbatchError,
    UnknownNameError,
)
from rlbatch.policy.registry import resolve_policy

EVERY_ERROR = [
    UnknownNameError("task", "digit-mlp", ["digits-mlp", "char-lm"]),
    MissingExtraError("lightning", "lightning"),
    *(
        kind("what came")
        for kind in (
            RlbatchError,
            ConfigurationError,
            PolicyFileError,
            EpisodeLogError,
            DeliveryError,
            MemoryUsedUpError,
            ClusterError,
        )
    ),
]


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_between_processes(error: RlbatchError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert vars(there) == vars(error)


def test_every_error_is_in_the_list() -> None:
    def tree(kind: type[RlbatchError]) -> set[type[RlbatchError]]:
        return {kind}.union(*(tree(below) for below in kind.__subclasses__()))

    ours = {kind for kind in tree(RlbatchError) if kind.__module__ == "rlbatch.errors"}
    assert {type(error) for error in EVERY_ERROR} == ours


def test_close_names_are_suggested() -> None:
    error = UnknownNameError("task", "digit-mlp", ["digits-mlp", "char-lm"])
    assert error.close == ["digits-mlp"]
    assert "Did you mean 'digits-mlp'?" in str(error)
    assert "Did you mean" not in str(UnknownNameError("task", "zzz", ["char-lm"]))


def test_a_worker_that_meets_an_unknown_name_says_so() -> None:
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(UnknownNameError, match="goodputt"),
    ):
        pool.apply_async(resolve_policy, ("goodputt",)).get(timeout=120)
