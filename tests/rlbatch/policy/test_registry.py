import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rlbatch
from rlbatch.agents.rules.fixed import Fixed
from rlbatch.agents.rules.noise_scale import NoiseScale
from rlbatch.errors import ConfigurationError, PolicyFileError, UnknownNameError
from rlbatch.policy import registry
from rlbatch.policy.base import Policy
from rlbatch.policy.file import save_policy
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.registry import PRETRAINED, policy_factory, policy_names, resolve_policy
from rlbatch.testing import random_policy


@pytest.mark.parametrize("name", [name for name in policy_names() if name not in PRETRAINED])
def test_every_name_makes_a_policy_without_parameters(name: str) -> None:
    policy = resolve_policy(name)
    assert isinstance(policy, Policy)
    assert policy == resolve_policy(name)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("fixed", Fixed()),
        ("fixed:64", Fixed(64)),
        ("fixed:batch_size=64", Fixed(64)),
        (" fixed:none ", Fixed()),
        ("noise-scale:theta=0.3,follow=true", NoiseScale(theta=0.3, follow=True)),
        ("noise-scale:0.3,warmup_chunks=0", NoiseScale(theta=0.3, warmup_chunks=0)),
    ],
)
def test_parameters(spec: str, expected: Policy) -> None:
    assert resolve_policy(spec) == expected


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "fixed:size=64",
            r"fixed has no parameter 'size'.*batch_size \(int or none, default None\)",
        ),
        ("fixed:big", "batch_size cannot be 'big'"),
        ("fixed:0", "at least 1; got 0"),
        ("default:64", "takes no parameters; got '64'"),
        ("noise-scale:needs_gradient_noise=false", "no parameter 'needs_gradient_noise'"),
    ],
)
def test_wrong_parameters(spec: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        resolve_policy(spec)


def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(
        UnknownNameError, match=r"Unknown policy 'goodputt'\. Did you mean 'goodput'"
    ):
        resolve_policy("goodputt:theta=1")
    with pytest.raises(
        UnknownNameError, match=r"Known: adadamp, .*default, divebatch, epochs, fixed"
    ):
        resolve_policy("zzz")


def test_policy_files_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy(np.random.default_rng(0))
    save_policy(tmp_path / "mine.safetensors", policy)
    save_policy(tmp_path / "bare", policy)
    monkeypatch.chdir(tmp_path)
    for spec in ("mine.safetensors", "./mine.safetensors", tmp_path / "mine.safetensors", "bare"):
        assert isinstance(resolve_policy(spec), LearnedPolicy)
    with pytest.raises(PolicyFileError, match="no such policy file"):
        resolve_policy("yours.safetensors")
    with pytest.raises(PolicyFileError, match="no such policy file"):
        resolve_policy("some/where")


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_policy_that_ships_is_the_packaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(registry, "files", lambda package: tmp_path / package)
    with pytest.raises(PolicyFileError, match=rf"{name} policy is missing.*Install rlbatch again"):
        resolve_policy(name)
    policy = random_policy(np.random.default_rng(0), action_grid=(-1, 0, 1))
    save_policy(tmp_path / f"rlbatch/agents/pretrained/{name}.safetensors", policy)
    loaded = resolve_policy(name)
    assert isinstance(loaded, LearnedPolicy)
    assert loaded.action_grid == (-1.0, 0.0, 1.0)


def test_factories_of_rules() -> None:
    assert policy_factory("fixed") is Fixed
    with pytest.raises(UnknownNameError, match="Did you mean 'goodput'"):
        policy_factory("godput")


def test_built_in_rules_need_no_look_at_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged package elsewhere, or a slow disk, concerns only those who name a plug-in."""

    def refuse() -> None:
        raise AssertionError("looked for plug-ins")

    monkeypatch.setattr(registry, "find_plugins", refuse)
    assert resolve_policy("fixed:8") == Fixed(8)
    with pytest.raises(ConfigurationError, match="takes no parameters"):
        resolve_policy("default:8")
    with pytest.raises(AssertionError, match="looked for plug-ins"):
        resolve_policy("mine")


def test_public_name() -> None:
    assert rlbatch.resolve_policy("fixed:64") == Fixed(64)


def test_naming_a_rule_loads_nothing_heavy() -> None:
    code = (
        "import sys; from rlbatch.policy.registry import resolve_policy; resolve_policy('goodput');"
        "print([m for m in ('torch', 'gymnasium', 'stable_baselines3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
