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
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

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
    Header,
    Tensors,
    parse_json,
    read_header,
    read_tensors,
)
from rlbatch.policy.file_checks import (
    DAMAGED,
    FORMAT_VERSION,
    check_entries,
    check_infos,
    check_versions,
    complain,
    parse,
)
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.metadata import CARD_KEYS, NETS, complaints, expected_shapes
from rlbatch.policy.network import Layer, Network

_LARGEST_OUTPUT = 1e30  # float32 ends at 3e38; sums of some members' outputs stay far below


def save_policy(
    path: str | os.PathLike[str], policy: LearnedPolicy, card: PolicyCard | None = None
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
        for number, member in enumerate(policy.members)
        for net in NETS
        for index, layer in enumerate(getattr(member, net))
        for part, array in zip(("weight", "bias"), layer, strict=True)
    }
    metadata = _metadata(policy, card)
    metadata["checksum"] = json.dumps(_checksum(metadata, tensors))
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, _in_fixed_order(save(tensors, metadata)))


def load_policy(path: str | os.PathLike[str]) -> LearnedPolicy:
    """Read a policy file.

    Raises:
        PolicyFileError: The file does not exist, is no policy file, belongs to another version,
            or its content is incomplete, inconsistent or damaged.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _read(path, file)
        content = parse(path, header.texts)
        check_versions(path, content)
        check_entries(path, content)
        check_infos(path, expected_shapes(content["layer_sizes"]), header.tensors)
        tensors = _read_weights(path, file, header)
    if content["checksum"] != _checksum(header.texts, tensors):
        raise PolicyFileError(f"{path}: the content does not match its checksum. {DAMAGED}")
    try:
        return _build(content, tensors)
    except (ArithmeticError, ConfigurationError, TypeError, ValueError) as error:
        raise PolicyFileError(
            f"{path}: the parts of the policy do not fit together: {error} Save it again."
        ) from error


def _metadata(policy: LearnedPolicy, card: PolicyCard) -> dict[str, str]:
    """Return every metadata entry but the checksum."""
    activations = [member.activation for member in policy.members]
    content = {
        "format_version": FORMAT_VERSION,
        "schema_version": SCHEMA_VERSION,
        "observation_names": OBSERVATION_NAMES,
        "layer_sizes": [{net: member.sizes(net) for net in NETS} for member in policy.members],
        "activation": activations[0] if len(set(activations)) == 1 else activations,
        "action_grid": policy.action_grid,
        "goodput_slack": policy.goodput_slack,
        "noise_ceiling": policy.noise_ceiling,
        "keeps_steps": policy.keeps_steps,
        "near_base": policy.near_base,
        "masked": policy.masked,
        "sample": policy.sample,
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


def _build(content: Mapping[str, Any], tensors: Tensors) -> LearnedPolicy:
    names = content["observation_names"]

    def chain(number: int, net: str) -> tuple[Layer, ...]:
        prefix = f"member.{number}.{net}"
        count = len(content["layer_sizes"][number][net]) - 1
        first, *rest = (
            Layer(tensors[f"{prefix}.{i}.weight"], tensors[f"{prefix}.{i}.bias"])
            for i in range(count)
        )
        return Layer(_widened(first.weight, names, 0.0), first.bias), *rest

    count, activations = len(content["layer_sizes"]), content["activation"]
    if isinstance(activations, str):
        activations = [activations] * count
    members = [
        _in_range(Network(chain(number, "policy"), chain(number, "value"), activation))
        for number, activation in zip(range(count), activations, strict=True)
    ]
    card: dict[str, Any] = {key: content[key] for key in CARD_KEYS}
    for key in ("objectives", "couplings"):
        card[key] = tuple(card[key])
    for key, extreme in (("observation_low", -1.0), ("observation_high", 1.0)):
        seen = np.asarray(card[key], dtype=np.float64)
        card[key] = tuple(_widened(seen, names, extreme).tolist()) if seen.size else ()
    return LearnedPolicy(
        members=tuple(members),
        action_grid=tuple(content["action_grid"]),
        goodput_slack=content.get("goodput_slack"),
        noise_ceiling=content.get("noise_ceiling"),
        keeps_steps=bool(content.get("keeps_steps")),
        near_base=bool(content.get("near_base")),
        masked=bool(content["masked"]),
        sample=bool(content["sample"]),
        card=PolicyCard(**card),
    )


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


def _opened(path: Path) -> BinaryIO:
    """Open a file, and nothing that would be waited for, such as a pipe."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise PolicyFileError(
                f"{path}: a policy file (.safetensors) was expected, and this is no regular file. "
                "Copy it to one."
            )
        return path.open("rb")
    except FileNotFoundError:
        raise PolicyFileError(f"{path}: there is no such policy file. Check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: no path can have such a name
        raise PolicyFileError(
            f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}. Name a policy "
            "file (.safetensors) that may be read."
        ) from error


def _read(path: Path, file: BinaryIO) -> Header:
    """Return the header of a safetensors file, whatever it is of."""
    try:
        start = file.read(4)
        if not start.startswith(b"PK"):
            file.seek(0)
            return read_header(file)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    raise PolicyFileError(
        f"{path}: a policy file (.safetensors) was expected, and this is a zip archive, like a "
        "checkpoint of a training. Name the policy.safetensors beside it, which a training "
        f"writes at its end; one that was stopped goes on with: rlbatch train --resume --out "
        f"{path.parent}"
    )


def _read_weights(path: Path, file: BinaryIO, header: Header) -> Tensors:
    try:
        tensors = read_tensors(file, header)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    complain(
        path,
        [
            f"{name} has entries that are not finite"
            for name in sorted(tensors)
            if not np.isfinite(tensors[name]).all()
        ],
    )
    return tensors


def _unreadable(path: Path, error: Exception) -> PolicyFileError:
    return PolicyFileError(
        f"{path}: cannot be read as a .safetensors file of a policy ({error}). It is truncated, "
        "damaged or of another kind. Fetch it again, or make one with: rlbatch train"
    )


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
