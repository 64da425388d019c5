"""Policy files from elsewhere: what is wrong is said, and costs neither memory nor time."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlbatch.errors import ConfigurationError, PolicyFileError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.container import MAX_HEADER
from rlbatch.policy.file import load_policy, save_policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.testing import random_policy, random_signals
from tests.helpers import fuzzed
from tests.rlbatch.policy import odd_files

ROOT = Path(__file__).parents[3]
FULL = np.array([[-1.0], [0.0], [1.0]], dtype=np.float32).repeat(OBSERVATION_SIZE, axis=1)
CARD = PolicyCard(
    objectives=("target",),
    couplings=("none",),
    recipe="small",
    results={"ratio": {"digits": 0.93}, "seeds": [1, 2]},
    observation_low=(-1.0,) * OBSERVATION_SIZE,
    observation_high=(0.5,) * OBSERVATION_SIZE,
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "p"
    policy = random_policy(
        np.random.default_rng(3), hidden=(4,), members=2, activations=("relu", "tanh")
    )
    save_policy(path, policy, CARD)
    return path.read_bytes()


def is_refused_or_decides(content: bytes, path: Path) -> bool:
    """Return whether a file is refused; if not, its decisions must be sound ones."""
    path.write_bytes(content)
    try:
        policy = load_policy(path)
    except PolicyFileError as error:
        message = str(error)
        assert message.isprintable(), message
        assert len(message) < 1500
        return True
    decides(policy)
    return False


def decides(policy: LearnedPolicy) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        signals = random_signals((3,), np.random.default_rng(0))
        made, _ = policy.decide(FULL, signals, policy.initial_state((3,)))
        one, _ = policy.decide(
            FULL[2], random_signals((), np.random.default_rng(1)), policy.initial_state()
        )
    assert np.isfinite(made.log2_change).all()
    assert np.isfinite(one.log2_change)
    assert made.probabilities is not None
    np.testing.assert_allclose(made.probabilities.sum(axis=-1), 1.0, rtol=1e-4)
    assert np.isfinite(np.asarray(made.value)).all()


def run_changes(name: str, raw: bytes, path: Path, count: int) -> int:
    return sum(
        is_refused_or_decides(odd_files.CHANGES[name](raw, random.Random(f"{name} {seed}")), path)
        for seed in range(count)
    )


def test_the_writer_of_odd_files_writes_sound_ones(raw: bytes, tmp_path: Path) -> None:
    assert not is_refused_or_decides(odd_files.sealed(odd_files.parts_of(raw)), tmp_path / "p")


@pytest.mark.parametrize("name", odd_files.CHANGES)
def test_changed_files_are_refused_or_decide(name: str, raw: bytes, tmp_path: Path) -> None:
    assert run_changes(name, raw, tmp_path / "p", 200) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", odd_files.CHANGES)
def test_many_changed_files_are_refused_or_decide(name: str, raw: bytes, tmp_path: Path) -> None:
    count = fuzzed(1_000)
    assert run_changes(name, raw, tmp_path / "p", count) > count / 2


def with_entry(raw: bytes, key: str, text: str) -> bytes:
    texts, tensors = odd_files.parts_of(raw)
    texts[key] = text
    return odd_files.sealed((texts, tensors))


SIZES = '[{"policy": [79, 4, 5], "value": [79, Infinity, 1]}]'


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("layer_sizes", SIZES, "layer_sizes is no JSON"),
        (
            "layer_sizes",
            SIZES.replace("Infinity", "1e9"),
            "layer_sizes is malformed: expected 1 to",
        ),
        ("layer_sizes", SIZES.replace("Infinity", "9" * 400), "layer_sizes is malformed"),
        ("layer_sizes", "3", "layer_sizes is malformed"),
        ("layer_sizes", f"[{', '.join(['1'] * 100_000)}]", "layer_sizes is malformed"),
        ("action_grid", f"[0, {'9' * 400}]", "action_grid is malformed: expected a list of 1 to"),
        ("action_grid", "0", "action_grid is malformed"),
        ("action_grid", "[false, true]", "action_grid is malformed"),
        ("objectives", '"target"', "objectives is malformed: expected a list"),
        ("couplings", "7", "couplings is malformed"),
        ("observation_low", "0.5", "observation_low is malformed"),
        ("observation_high", "[null]", "observation_high is malformed"),
        ("noise_rate", '"often"', "noise_rate is malformed"),
        ("masked", '"no"', "masked is malformed: expected true or false, got no"),
        ("results", "[]", "results is malformed: expected an object"),
        ("recipe", "5", "recipe is malformed"),
        ("activation", "{}", "activation is malformed"),
        ("activation", '["tanh"]', "do not fit together"),
        ("schema_version", "true", "schema_version is True"),
        ("schema_version", "[3]", r"schema_version is \[3\]"),
        ("rlbatch_version", "null", "rlbatch_version is malformed"),
    ],
)
def test_metadata_of_the_wrong_kind_is_named(
    key: str, text: str, words: str, raw: bytes, tmp_path: Path
) -> None:
    (tmp_path / "p").write_bytes(with_entry(raw, key, text))
    with pytest.raises(PolicyFileError, match=words):
        load_policy(tmp_path / "p")


def test_weights_that_overflow_are_refused(raw: bytes, tmp_path: Path) -> None:
    texts, tensors = odd_files.parts_of(raw)
    for name in tensors:
        tensors[name] = tensors[name] * np.float32(1e20)
    (tmp_path / "p").write_bytes(odd_files.sealed((texts, tensors)))
    with pytest.raises(PolicyFileError, match="so large that its outputs could reach"):
        load_policy(tmp_path / "p")


@pytest.mark.parametrize("key", ["rlbatch_version", "observation_names", "schema_version"])
def test_what_a_message_quotes_does_not_reach_the_terminal(
    key: str, raw: bytes, tmp_path: Path
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e" + "x" * 5000
    texts, tensors = odd_files.parts_of(raw)
    texts["schema_version"] = "99"
    texts[key] = json.dumps([evil] if key == "observation_names" else evil)
    if key == "observation_names":
        texts["schema_version"] = "3"
    (tmp_path / "p").write_bytes(odd_files.sealed((texts, tensors)))

    with pytest.raises(PolicyFileError, match=r"\\x1b") as raised:
        load_policy(tmp_path / "p")

    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1500


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PolicyFileError, match="no regular file"):
        load_policy(tmp_path / "pipe")
    with pytest.raises(PolicyFileError, match="cannot be opened"):
        load_policy(str(tmp_path / "no\0name"))


def test_what_would_not_load_is_not_saved(tmp_path: Path) -> None:
    policy = random_policy(np.random.default_rng(3), hidden=(4,))
    long: dict[str, Any] = {"curve": [0.25] * (MAX_HEADER // 5)}
    with pytest.raises(ConfigurationError, match=f"may take {MAX_HEADER} bytes"):
        save_policy(tmp_path / "p", policy, PolicyCard(results=long))
    many = random_policy(np.random.default_rng(3), hidden=(2,) * 40)
    with pytest.raises(ConfigurationError, match="could not be loaded again: layer_sizes"):
        save_policy(tmp_path / "p", many)
    assert not list(tmp_path.iterdir())


# Peak memory, in processes of their own ----------------------------------------------------------

_PROBE = """
import resource, sys
from rlbatch.policy.file import load_policy
from rlbatch.errors import PolicyFileError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
try:
    load_policy(sys.argv[1])
except PolicyFileError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(error)
"""


def peak_mib(path: Path) -> tuple[float, str]:
    """Return by how much a refusal raises a process's memory, in MiB, and what it says."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    kibibytes, message = done.stdout.split("\n", 1)
    return int(kibibytes) / 1024, message


def model_weights(path: Path, metadata: dict[str, str] | None) -> None:
    """Write a model's weights, 1.5 GB that take no room on the disk."""
    size = 1_500_000_000
    header: dict[str, Any] = {
        "w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    }
    if metadata is not None:
        header["__metadata__"] = metadata
    with path.open("wb") as file:
        file.write(odd_files.joined(json.dumps(header), b""))
        file.truncate(file.tell() + size)


def long_sizes(path: Path, raw: bytes) -> None:
    texts, _ = odd_files.parts_of(raw)
    texts["layer_sizes"] = json.dumps([{"policy": [1] * 1_500_000, "value": [79, 1]}])
    path.write_bytes(odd_files.sealed((texts, {})))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_CPU"), reason="needs Linux's figures")
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path, raw: model_weights(path, None), "the metadata lacks"),
        (lambda path, raw: model_weights(path, {"format": "pt"}), "the metadata lacks"),
        (lambda path, raw: model_weights(path, odd_files.parts_of(raw)[0]), "bias is missing"),
        (lambda path, raw: model_weights(path, {"format": "p" * 50_000_000}), "header has 50"),
        (long_sizes, "header has 4"),
        (lambda path, raw: path.write_bytes(b"\xff" * 8 + raw), "would have"),
    ],
)
def test_a_refusal_takes_no_memory(
    write: Callable[[Path, bytes], None], words: str, raw: bytes, tmp_path: Path
) -> None:
    write(tmp_path / "big", raw)
    mebibytes, message = peak_mib(tmp_path / "big")
    assert words in message
    assert mebibytes < 40
