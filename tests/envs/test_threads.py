"""Threads of PyTorch and of NumPy's products, as the libraries themselves count them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from rlbatch.envs.threads import one_thread, use_one_thread


def threads() -> set[int]:
    products = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
    assert products, "NumPy's matrix products were not found"
    return products | {torch.get_num_threads()}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2, "blas"):
        yield
    torch.set_num_threads(before)


def test_there_is_one_thread_from_now_on() -> None:
    assert threads() == {2}
    use_one_thread()
    assert threads() == {1}


def test_there_are_as_many_as_before_afterwards() -> None:
    with one_thread():
        assert threads() == {1}
    assert threads() == {2}


def test_threads_are_put_back_after_a_failure() -> None:
    with pytest.raises(RuntimeError, match="lost"), one_thread():
        raise RuntimeError("lost")
    assert threads() == {2}
