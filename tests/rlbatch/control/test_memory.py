"""What fits into memory: predictions against memory of known shape, and the gauges' counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rlbatch.control.memory import (
    MARGIN,
    CudaGauge,
    HostGauge,
    MicroBatchLimit,
    is_out_of_memory,
    make_gauge,
)


@given(
    fixed=st.integers(0, 10**6),
    each=st.integers(1, 10**5),
    capacity=st.integers(10**5, 10**9),
    first=st.integers(1, 64),
)
def test_the_limit_reaches_what_fits_and_stays_there(
    fixed: int, each: int, capacity: int, first: int
) -> None:
    """A device whose passes need fixed + each * samples: what fits is known."""
    fits = (capacity - fixed) // each
    if fits < 1:
        return
    limit = MicroBatchLimit(first)
    failures = 0
    for _ in range(60):
        assert limit.limit is not None
        assert limit.limit >= 1
        size = limit.limit
        needed = fixed + each * size
        if needed > capacity:
            limit, failures = limit.after_failure(size), failures + 1
            continue
        limit = limit.after_pass(size, needed, capacity)
    assert failures <= max(first.bit_length(), 1)  # only a first size that was too large
    assert limit.limit is not None
    assert limit.limit <= fits
    # The margin, rounding down, and after a failure at most another half.
    reachable = ((1 - MARGIN) * capacity - fixed) / each - 1
    assert limit.limit >= min(reachable, first if failures else reachable) / 2 - 1


def test_it_grows_by_doubling_at_most() -> None:
    limit = MicroBatchLimit(8).after_pass(8, 8, 10**9)
    assert limit.limit == 16
    assert limit.after_pass(4, 4, 10**9) == limit  # a smaller pass says nothing new


def test_a_failure_halves_and_is_never_repeated() -> None:
    limit = MicroBatchLimit(64).after_failure(64)
    assert (limit.limit, limit.failed) == (32, 64)
    assert limit.after_pass(32, 32, 10**9).limit == 63
    assert MicroBatchLimit(1).after_failure(1).limit == 1
    assert MicroBatchLimit.from_state(limit.state_dict()) == limit


def test_the_host_gauge_counts_what_autograd_saves() -> None:
    x = torch.randn(10, 4)
    weight = torch.randn(4, 3, requires_grad=True)
    gauge = HostGauge(10**9)
    with gauge.watch():
        hidden = (x @ weight).tanh()  # saves x and the hidden values; the weight is there anyway
        hidden.sum().backward()
    assert gauge.needed() == 4 * (10 * 4 + 10 * 3)
    with gauge.watch():
        pass
    assert gauge.needed() == 0


def test_the_host_gauge_stops_a_pass_that_saves_more_than_its_limit() -> None:
    gauge, model = HostGauge(10_000), nn.Sequential(nn.Linear(10, 100), nn.Tanh())
    with gauge.watch():
        model(torch.randn(20, 10)).sum().backward()
    with pytest.raises(torch.OutOfMemoryError, match="10000 bytes"), gauge.watch():
        model(torch.randn(40, 10)).sum().backward()


def test_without_a_limit_the_host_gauge_has_half_of_the_machine() -> None:
    assert HostGauge().free() > 2**28
    assert isinstance(make_gauge(torch.device("cpu"), None), HostGauge)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_for_lack_of_memory_are_told_from_others(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.gpu
def test_the_cuda_gauge_counts_what_a_pass_allocates() -> None:
    device = torch.device("cuda")
    gauge = make_gauge(device, None)
    assert isinstance(gauge, CudaGauge)
    torch.cuda.reset_peak_memory_stats(device)
    with gauge.watch():
        torch.empty(2**22, device=device)
    assert gauge.needed() >= 2**24
    assert gauge.free() > 0
    assert make_gauge(device, 2**40).free() > 2**39
