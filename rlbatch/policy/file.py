"""The policy file: weights and what is needed to trust them, as one `.safetensors` file.

Loading never unpickles, and refuses what it cannot vouch for: first by the header, then by the
metadata, and only then it reads weights. Metadata entries, all JSON strings:

| key | what |
|---|---|
| `format_version` | layout of this file |
| `schema_version`, `observation_names` | what the network sees; as in `rlbatch.observation` |
| `layer_sizes` | one `{"policy": [...], "value": [...]}` a member, inputs first |
| `activation` | of all members, or a list of theirs |
| `action_grid`, `masked`, `sample` | how outputs become a decision |
| `memory_sizes` | of a recurrent policy, format 2: units of its memory's layers, inputs first |
| the fields of `PolicyCard` | how the policy was made, what it achieved |
| `checksum` | SHA-256 of all of the above and of the weights |

A file of an earlier schema, which had a part of today's observations, loads: what it never saw gets
the weight 0.

There is no normaliser: observations are bounded by construction. A running normaliser used in
training is folded into the first layer before saving.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

import rlbatch
from rlbatch.errors import ConfigurationError, PolicyFileError
from rlbatch.files import write_atomically
from rlbatch.observation import OBSERVATION_NAMES, SCHEMA_VERSION
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.container import (
    MAX_HEADER,
    Tensors,
    parse_json,
)
from rlbatch.policy.file_checks import (
    DAMAGED,
    FORMAT_VERSION,
    check_entries,
    check_infos,
    check_versions,
    parse,
)
from rlbatch.policy.file_reading import opened, read_any_header, read_weights
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.metadata import (
    CARD_KEYS,
    NETS,
    complaints,
    expected_shapes,
    memory_shapes,
)
from rlbatch.policy.network import Layer, Network
from rlbatch.policy.recurrent import RecurrentPolicy
from rlbatch.policy.recurrent_file import memory_entries, memory_layers, memory_tensors

_LARGEST_OUTPUT = 1e30  # float32 ends at 3e38; sums of some members' outputs stay far below


def save_policy(
    path: str | os.PathLike[str],
    policy: LearnedPolicy | RecurrentPolicy,
    card: PolicyCard | None = None,
) -> None:
    """Write a policy file; a crash leaves either the old file or the new one, never a part.

    Args:
        path: Where to; the folder is made when missing. The usual suffix is `.safetensors`.
        policy: What to write.
        card: How it was made; `policy.card` when None.

    Raises:
        ConfigurationError: `card.results` holds something that JSON has no word for, or the
            policy is larger than what `load_policy` reads.
    """
    card = replace(policy.card if card is None else card, rlbatch_version=rlbatch.__version__)
    tensors: Tensors = {
        f"member.{number}.{net}.{index}.{part}": array
        for number, member in enumerate(_members(policy))
        for net in NETS
        for index, layer in enumerate(getattr(member, net))
        for part, array in zip(("weight", "bias"), layer, strict=True)
    }
    if isinstance(policy, RecurrentPolicy):
        tensors |= memory_tensors(policy)
    metadata = _metadata(policy, card)
    metadata["checksum"] = json.dumps(_checksum(metadata, tensors))
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, _in_fixed_order(save(tensors, metadata)))


def load_policy(path: str | os.PathLike[str]) -> LearnedPolicy:
    """Read a policy file of networks alone.

    Raises:
        PolicyFileError: The file does not exist, is no policy file, belongs to another version,
            its content is incomplete, inconsistent or damaged, or it holds a recurrent policy.
    """
    policy = load_any_policy(path)
    if isinstance(policy, RecurrentPolicy):
        raise PolicyFileError(
            f"{path}: a policy without a memory was expected, and this one is recurrent: it "
            "decides (rlbatch.resolve_policy reads it), but cannot be joined or trained further."
        )
    return policy


def load_any_policy(path: str | os.PathLike[str]) -> LearnedPolicy | RecurrentPolicy:
    """Read a policy file of either kind.

    Raises:
        PolicyFileError: As `load_policy`, recurrent policies excepted.
    """
    path = Path(path)
    with opened(path) as file:
        header = read_any_header(path, file)
        content = parse(path, header.texts)
        check_versions(path, content)
        check_entries(path, content)
        shapes = expected_shapes(content["layer_sizes"])
        shapes |= memory_shapes(content.get("memory_sizes"))
        check_infos(path, shapes, header.tensors)
        tensors = read_weights(path, file, header)
    if content["checksum"] != _checksum(header.texts, tensors):
        raise PolicyFileError(f"{path}: the content does not match its checksum. {DAMAGED}")
    try:
        return _build(content, tensors)
    except (ArithmeticError, ConfigurationError, TypeError, ValueError) as error:
        raise PolicyFileError(
            f"{path}: the parts of the policy do not fit together: {error} Save it again."
        ) from error


def _members(policy: LearnedPolicy | RecurrentPolicy) -> tuple[Network, ...]:
    return (policy.network,) if isinstance(policy, RecurrentPolicy) else policy.members


def _metadata(policy: LearnedPolicy | RecurrentPolicy, card: PolicyCard) -> dict[str, str]:
    """Return every metadata entry but the checksum."""
    members = _members(policy)
    activations = [member.activation for member in members]
    content = {
        "format_version": FORMAT_VERSION,
        "schema_version": SCHEMA_VERSION,
        "observation_names": OBSERVATION_NAMES,
        "layer_sizes": [{net: member.sizes(net) for net in NETS} for member in members],
        "activation": activations[0] if len(set(activations)) == 1 else activations,
        "action_grid": policy.action_grid,
        **(memory_entries(policy) if isinstance(policy, RecurrentPolicy) else _limits(policy)),
        **{key: getattr(card, key) for key in CARD_KEYS},
    }
    try:
        texts = {
            key: json.dumps(value, allow_nan=False, sort_keys=True)
            for key, value in content.items()
        }
        wrong = list(complaints({key: parse_json(text) for key, text in texts.items()}))
    except (RecursionError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"A policy card must hold finite numbers, strings, lists and dictionaries: {error}."
        ) from error
    if wrong:
        raise ConfigurationError(f"This policy could not be loaded again: {wrong[0]}.")
    return texts


def _limits(policy: LearnedPolicy) -> dict[str, Any]:
    names = ("goodput_slack", "noise_ceiling", "keeps_steps", "near_base", "masked", "sample")
    return {name: getattr(policy, name) for name in names}


def _build(content: Mapping[str, Any], tensors: Tensors) -> LearnedPolicy | RecurrentPolicy:
    names, memory = content["observation_names"], content.get("memory_sizes")

    def chain(number: int, net: str) -> tuple[Layer, ...]:
        prefix = f"member.{number}.{net}"
        count = len(content["layer_sizes"][number][net]) - 1
        first, *rest = (
            Layer(tensors[f"{prefix}.{i}.weight"], tensors[f"{prefix}.{i}.bias"])
            for i in range(count)
        )
        if memory is None:
            first = Layer(_widened(first.weight, names, 0.0), first.bias)
        return first, *rest

    count, activations = len(content["layer_sizes"]), content["activation"]
    if isinstance(activations, str):
        activations = [activations] * count
    members = [
        _in_range(Network(chain(number, "policy"), chain(number, "value"), activation))
        for number, activation in zip(range(count), activations, strict=True)
    ]
    if memory is not None:
        layers = memory_layers(memory, tensors)
        first = layers[0]._replace(inputs=_widened(layers[0].inputs, names, 0.0))
        (network,) = members
        grid = tuple(content["action_grid"])
        return RecurrentPolicy((first, *layers[1:]), network, grid, _card(content, names))
    return LearnedPolicy(
        members=tuple(members),
        action_grid=tuple(content["action_grid"]),
        goodput_slack=content.get("goodput_slack"),
        noise_ceiling=content.get("noise_ceiling"),
        keeps_steps=bool(content.get("keeps_steps")),
        near_base=bool(content.get("near_base")),
        masked=bool(content["masked"]),
        sample=bool(content["sample"]),
        card=_card(content, names),
    )


def _card(content: Mapping[str, Any], names: list[str]) -> PolicyCard:
    card: dict[str, Any] = {key: content[key] for key in CARD_KEYS}
    for key in ("objectives", "couplings"):
        card[key] = tuple(card[key])
    for key, extreme in (("observation_low", -1.0), ("observation_high", 1.0)):
        seen = np.asarray(card[key], dtype=np.float64)
        card[key] = tuple(_widened(seen, names, extreme).tolist()) if seen.size else ()
    return PolicyCard(**card)


def _in_range(network: Network) -> Network:
    """Refuse weights with which a decision would not be a finite number."""
    for net in NETS:
        most = network.largest_output(net)
        if not most <= _LARGEST_OUTPUT:
            raise ConfigurationError(
                f"The {net} net has weights so large that its outputs could reach {most:.3g}."
            )
    return network


def _widened(values: NDArray[Any], names: list[str], unseen: float) -> NDArray[Any]:
    """Return values whose last axis are a file's observations with one that has today's."""
    if values.shape[-1] != len(names):
        raise ConfigurationError(
            f"Expected {len(names)} observations in the last axis, got {values.shape[-1]}."
        )
    wide = np.full((*values.shape[:-1], len(OBSERVATION_NAMES)), unseen, dtype=values.dtype)
    wide[..., [OBSERVATION_NAMES.index(name) for name in names]] = values
    return wide


def _checksum(texts: Mapping[str, str], tensors: Tensors) -> str:
    digest = hashlib.sha256()
    kept = {key: text for key, text in texts.items() if key != "checksum"}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def _in_fixed_order(raw: bytes) -> bytes:
    """Sort the header, which safetensors writes in random order: equal policies, equal files."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the weights stay aligned
    if len(text) > MAX_HEADER:
        raise ConfigurationError(
            f"A policy card may take {MAX_HEADER} bytes with all else but the weights, and takes "
            f"{len(text)}. Keep long results in a file of their own."
        )
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]
