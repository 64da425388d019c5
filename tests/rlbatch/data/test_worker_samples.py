import numpy as np
import pytest
import torch

from rlbatch.data.worker_samples import fingerprint

LARGE = torch.arange(10_000)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(2.0, dtype=torch.bfloat16)),
        (np.array([1, 2]), np.array([1, 3])),
        ("a text", "another"),
        ({"x": torch.tensor(1), "y": 2}, {"x": torch.tensor(1), "y": 3}),
        ((torch.tensor(1), 0), (torch.tensor(1), 1)),
        (b"1", b"2"),
    ],
)
def test_samples_are_told_apart(one: object, other: object) -> None:
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    "sample", [torch.tensor([0.1, float("nan")]), {"a": [1, "b"]}, np.arange(3), None, object()]
)
def test_a_sample_and_its_copy_look_alike(sample: object) -> None:
    copy = torch.clone(sample) if isinstance(sample, torch.Tensor) else sample
    assert fingerprint(copy) == fingerprint(sample)


def test_objects_look_alike_whatever_their_address() -> None:
    assert fingerprint([object(), torch.eye(2).to_sparse()]) == fingerprint(
        [object(), torch.eye(2).to_sparse()]
    )


@pytest.mark.parametrize("sample", [LARGE, LARGE.numpy(), "x" * 10_000, [1] * 10_000])
def test_large_samples_have_short_fingerprints(sample: object) -> None:
    assert len(fingerprint(sample)) < 1000
