import json
import pickle
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open
from safetensors.numpy import save_file

import rlbatch
from rlbatch.errors import ConfigurationError, PolicyFileError
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from rlbatch.policy import file
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.file import load_policy, save_policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.testing import random_policy, random_signals
from tests.helpers import fuzzed

CARD = PolicyCard(
    objectives=("target",),
    couplings=("none", "linear"),
    recipe="small",
    recipe_hash="abc123",
    results={"ratio": {"digits": 0.93}, "seeds": 5},
    observation_low=(-1.0,) * OBSERVATION_SIZE,
    observation_high=(0.5,) * OBSERVATION_SIZE,
)


def make_policy(**settings: Any) -> LearnedPolicy:
    return random_policy(np.random.default_rng(3), hidden=(4,), **settings)


def same_weights(one: LearnedPolicy, other: LearnedPolicy) -> bool:
    def arrays(policy: LearnedPolicy) -> list[np.ndarray]:
        return [a for m in policy.members for layer in m.policy + m.value for a in layer]

    return all(
        a.shape == b.shape and (a == b).all()
        for a, b in zip(arrays(one), arrays(other), strict=True)
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.safetensors"
    save_policy(path, make_policy(), CARD)
    return path


def rewrite(path: Path, change: Any) -> None:
    """Apply `change(metadata, tensors)` to a file, leaving it a sound safetensors file."""
    with safe_open(path, framework="np") as opened:
        metadata = dict(opened.metadata())
        tensors = {name: opened.get_tensor(name).copy() for name in opened.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("activations", [("tanh",), ("relu",), ("relu", "tanh")])
def test_round_trip_keeps_everything(tmp_path: Path, activations: tuple[str, ...]) -> None:
    policy = make_policy(
        members=2,
        activations=activations,
        action_grid=(-3, -1, 0, 0.5),
        masked=True,
        sample=True,
        goodput_slack=0.5,
        keeps_steps=True,
        near_base=True,
    )
    path = tmp_path / "new" / "folder" / "p.safetensors"
    save_policy(path, policy, CARD)
    loaded = load_policy(path)
    assert same_weights(policy, loaded)
    assert [m.activation for m in loaded.members] == [m.activation for m in policy.members]
    for name in ("action_grid", "goodput_slack", "keeps_steps", "near_base", "masked", "sample"):
        assert getattr(loaded, name) == getattr(policy, name)
    assert loaded.card == replace(CARD, rlbatch_version=rlbatch.__version__)
    rng = np.random.default_rng(0)
    signals = random_signals((20,), rng)
    observation = rng.uniform(-1, 1, (20, OBSERVATION_SIZE)).astype(np.float32)
    before, _ = policy.decide(observation, signals, policy.initial_state((20,)))
    after, _ = loaded.decide(observation, signals, loaded.initial_state((20,)))
    np.testing.assert_array_equal(before.log2_change, after.log2_change)
    np.testing.assert_array_equal(before.probabilities, after.probabilities)


def test_a_file_from_before_the_bounds_has_none(path: Path) -> None:
    def older(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> None:
        del (
            metadata["goodput_slack"],
            metadata["keeps_steps"],
            metadata["near_base"],
            metadata["checksum"],
        )
        metadata["checksum"] = json.dumps(file._checksum(metadata, tensors))

    rewrite(path, older)
    assert load_policy(path).goodput_slack is None
    assert load_policy(path).keeps_steps is False


def test_metadata_is_readable_without_rlbatch(path: Path) -> None:
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    metadata = {key: json.loads(text) for key, text in header["__metadata__"].items()}
    assert metadata["observation_names"] == list(OBSERVATION_NAMES)
    assert metadata["layer_sizes"] == [
        {"policy": [OBSERVATION_SIZE, 4, 5], "value": [OBSERVATION_SIZE, 4, 1]}
    ]
    assert metadata["couplings"] == ["none", "linear"]
    assert metadata["results"]["ratio"] == {"digits": 0.93}


def test_equal_policies_make_equal_files(path: Path) -> None:
    first = path.read_bytes()
    for _ in range(3):
        save_policy(path, make_policy(), CARD)
        assert path.read_bytes() == first


def test_card_of_the_policy_is_used_when_none_is_given(tmp_path: Path) -> None:
    save_policy(tmp_path / "p", replace(make_policy(), card=CARD))
    assert load_policy(tmp_path / "p").card.recipe_hash == "abc123"


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_policy(path, make_policy(members=3))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_results_must_be_json(tmp_path: Path) -> None:
    for odd in ({"ratio": float("nan")}, {"ratio": np.ones(2)}):
        with pytest.raises(ConfigurationError, match="finite numbers, strings"):
            save_policy(tmp_path / "p", make_policy(), PolicyCard(results=odd))
    assert not list(tmp_path.iterdir())


def test_cards_are_checked() -> None:
    with pytest.raises(ConfigurationError, match=r"couplings holds \['quadratic'\]"):
        PolicyCard(couplings=("none", "quadratic"))
    with pytest.raises(ConfigurationError, match=r"objectives holds \['speed'\]"):
        PolicyCard(objectives=("speed",))
    with pytest.raises(ConfigurationError, match="got 2 and 0"):
        PolicyCard(observation_low=(0.0, 0.0))


def test_other_schema_says_which_versions_and_what_to_do(path: Path) -> None:
    rewrite(path, lambda metadata, _: metadata.update(schema_version="99", rlbatch_version='"7.1"'))
    with pytest.raises(
        PolicyFileError, match=r"schema_version is 99.*reads 1 to 3.*rlbatch 7\.1.*again"
    ):
        load_policy(path)


def test_other_format_is_refused_before_anything_else_is_read(path: Path) -> None:
    rewrite(path, lambda metadata, _: metadata.update(format_version="2", layer_sizes="[]"))
    with pytest.raises(PolicyFileError, match="format_version is 2"):
        load_policy(path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([*OBSERVATION_NAMES[:-1], "mood"], "differing: mood, plan_left"),
        (list(reversed(OBSERVATION_NAMES)), "differing: their order"),
        (7, "observation names"),
    ],
)
def test_other_observations_are_named(path: Path, names: Any, words: str) -> None:
    rewrite(path, lambda metadata, _: metadata.update(observation_names=json.dumps(names)))
    with pytest.raises(PolicyFileError, match=words):
        load_policy(path)


EARLIER = OBSERVATION_NAMES[::-1][:-20]  # any order: they are found by their names


def narrow(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> None:
    """Turn a file into one of the first schema, whose network saw less."""
    columns = [OBSERVATION_NAMES.index(name) for name in EARLIER]
    for net in ("policy", "value"):
        name = f"member.0.{net}.0.weight"
        tensors[name] = np.ascontiguousarray(tensors[name][:, columns])
    sizes = json.loads(metadata["layer_sizes"])
    for net in sizes[0]:
        sizes[0][net][0] = len(EARLIER)
    changes = {
        "schema_version": 1,
        "observation_names": EARLIER,
        "layer_sizes": sizes,
        "observation_low": [-0.25] * len(EARLIER),
        "observation_high": [0.75] * len(EARLIER),
    }
    metadata.update({key: json.dumps(value) for key, value in changes.items()})
    del metadata["checksum"]
    metadata["checksum"] = json.dumps(file._checksum(metadata, tensors))


def test_a_file_of_an_earlier_schema_decides_by_what_it_knew(path: Path) -> None:
    today = load_policy(path)
    rewrite(path, narrow)
    earlier = load_policy(path)
    rng = np.random.default_rng(1)
    observation = rng.uniform(-1, 1, (30, OBSERVATION_SIZE)).astype(np.float32)
    unseen = [i for i, name in enumerate(OBSERVATION_NAMES) if name not in EARLIER]
    blanked = observation.copy()
    blanked[:, unseen] = 0.0
    signals = random_signals((30,), rng)
    got, _ = earlier.decide(observation, signals, earlier.initial_state((30,)))
    wanted, _ = today.decide(blanked, signals, today.initial_state((30,)))
    assert got.probabilities is not None
    assert wanted.probabilities is not None
    np.testing.assert_allclose(got.probabilities, wanted.probabilities, atol=1e-6)
    low, high = np.array(earlier.card.observation_low), np.array(earlier.card.observation_high)
    assert (low[unseen] == -1.0).all()
    assert (high[unseen] == 1.0).all()
    assert set(np.delete(low, unseen)) == {-0.25}
    assert set(np.delete(high, unseen)) == {0.75}


def test_a_file_of_an_earlier_schema_with_strange_observations_is_refused(path: Path) -> None:
    def strange(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> None:
        narrow(metadata, tensors)
        metadata["observation_names"] = json.dumps(["mood", *EARLIER[1:]])

    rewrite(path, strange)
    with pytest.raises(PolicyFileError, match="mood"):
        load_policy(path)


def drop(_: Any, tensors: Any) -> None:
    del tensors["member.0.policy.1.bias"]


def add(_: Any, tensors: Any) -> None:
    tensors["member.1.policy.0.bias"] = np.zeros(4, np.float32)


def reshape(_: Any, tensors: Any) -> None:
    tensors["member.0.value.0.weight"] = np.ones((4, 7), np.float32)


def widen(_: Any, tensors: Any) -> None:
    tensors["member.0.value.0.bias"] = np.ones(4, np.float64)


def spoil(_: Any, tensors: Any) -> None:
    tensors["member.0.policy.0.weight"][2, 3] = np.nan


def swap_sign(_: Any, tensors: Any) -> None:
    tensors["member.0.policy.0.weight"] *= -1


def retouch(metadata: Any, _: Any) -> None:
    metadata["results"] = '{"ratio": 0.1}'


def unsettle(metadata: Any, _: Any) -> None:
    metadata["layer_sizes"] = '[{"policy": "many"}]'


def forget(metadata: Any, _: Any) -> None:
    del metadata["activation"], metadata["recipe_hash"]


def garble(metadata: Any, _: Any) -> None:
    metadata["action_grid"] = "[-1, 0,"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, r"member\.0\.policy\.1\.bias is missing"),
        (add, r"member\.1\.policy\.0\.bias is unknown"),
        (reshape, rf"shape \(4, 7\) and type float32, expected \(4, {OBSERVATION_SIZE}\)"),
        (widen, "type float64, expected"),
        (spoil, r"member\.0\.policy\.0\.weight has entries that are not finite"),
        (swap_sign, "does not match its checksum"),
        (retouch, "does not match its checksum"),
        (unsettle, "layer_sizes is malformed"),
        (forget, r"lacks activation, recipe_hash.*no policy file"),
        (garble, "action_grid is no JSON"),
    ],
)
def test_each_defect_is_refused_with_its_own_words(path: Path, change: Any, words: str) -> None:
    rewrite(path, change)
    with pytest.raises(PolicyFileError, match=words):
        load_policy(path)


def test_parts_that_are_sound_but_do_not_fit_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlbatch.policy.file._checksum", lambda *_: json.loads(checksum))
    checksum = ""

    def misfit(metadata: Any, _: Any) -> None:
        nonlocal checksum
        checksum = metadata["checksum"]
        metadata["action_grid"] = "[-1, 0, 1]"

    rewrite(path, misfit)
    with pytest.raises(PolicyFileError, match=r"do not fit together.*give 3 numbers"):
        load_policy(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="no such policy file"):
        load_policy(tmp_path / "nowhere.safetensors")
    with pytest.raises(PolicyFileError, match="cannot be opened"):
        load_policy(tmp_path)


def test_a_training_checkpoint_is_pointed_to_the_policy_beside_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "ppo.zip"
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("data", "{}")
    with pytest.raises(PolicyFileError, match=r"policy\.safetensors beside it.*train --resume"):
        load_policy(checkpoint)


@pytest.mark.parametrize("kind", ["pickle", "torch", "text", "empty"])
def test_other_kinds_of_files_are_refused_and_never_unpickled(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "policy.safetensors"

    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("the file was unpickled",))

    if kind == "pickle":
        file.write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch":
        torch.save({"weights": torch.ones(2)}, file)
    else:
        file.write_text("weights" * 100 if kind == "text" else "")
    with pytest.raises(PolicyFileError, match="rlbatch train"):
        load_policy(file)


@cache
def sound_bytes() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save_policy(Path(folder) / "p", make_policy(), CARD)
        return (Path(folder) / "p").read_bytes()


def loads_the_same_or_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    try:
        loaded = load_policy(path)
    except PolicyFileError:
        return
    assert same_weights(loaded, make_policy())
    assert loaded.action_grid == make_policy().action_grid
    assert loaded.card.results == CARD.results


@settings(max_examples=400)
@given(data=st.data())
def test_no_single_wrong_byte_gets_through(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(sound_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    place = data.draw(st.one_of(st.integers(0, header), st.integers(0, len(content) - 1)))
    content[place] = data.draw(st.integers(0, 255))
    loads_the_same_or_is_refused(bytes(content), tmp_path_factory.getbasetemp() / "corrupted")


@settings(max_examples=100)
@given(length=st.integers(0, 10_000))
def test_no_truncated_file_gets_through(
    length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = sound_bytes()
    path = tmp_path_factory.getbasetemp() / "truncated"
    path.write_bytes(whole[: min(length, len(whole) - 1)])
    with pytest.raises(PolicyFileError):
        load_policy(path)


@pytest.mark.slow
def test_every_byte_of_a_file_matters(tmp_path: Path) -> None:
    """Every place, one of three ways: one bit, the high bit, all bits; with fuzzing all of them."""
    whole = sound_bytes()
    path = tmp_path / "p"
    for place in range(len(whole)):
        for way in range(place, place + min(fuzzed(1), 3)):
            mask = (0x01, 0x80, 0xFF)[way % 3]
            content = bytearray(whole)
            content[place] ^= mask
            loads_the_same_or_is_refused(bytes(content), path)
