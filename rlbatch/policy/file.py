"""The policy file: weights and what is needed to trust them, as one `.safetensors` file.

Loading never unpickles, and refuses what it cannot vouch for. Metadata entries, all JSON strings:

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
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

import rlbatch
from rlbatch.errors import ConfigurationError, PolicyFileError
from rlbatch.observation import OBSERVATION_NAMES, SCHEMA_VERSION
from rlbatch.policy.card import PolicyCard
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network

FORMAT_VERSION = 1
OLDEST_SCHEMA = 1

_NETS = ("policy", "value")
_CARD_KEYS = tuple(field.name for field in fields(PolicyCard))
_KEYS = (
    *("format_version", "schema_version", "observation_names", "layer_sizes", "activation"),
    *("action_grid", "masked", "sample", *_CARD_KEYS, "checksum"),
)
_LATER_KEYS = ("goodput_slack", "keeps_steps")  # files without them are older, and mean none
_DAMAGED = "The file is damaged; fetch it again, or train one anew."

Tensors = dict[str, NDArray[Any]]

_open = cast(Any, safe_open)  # without annotations in safetensors


def save_policy(
    path: str | os.PathLike[str], policy: LearnedPolicy, card: PolicyCard | None = None
) -> None:
    """Write a policy file; a crash leaves either the old file or the new one, never a part.

    Args:
        path: Where to; the folder is made when missing. The usual suffix is `.safetensors`.
        policy: What to write.
        card: How it was made; `policy.card` when None.

    Raises:
        ConfigurationError: `card.results` holds something that JSON has no word for.
    """
    card = replace(policy.card if card is None else card, rlbatch_version=rlbatch.__version__)
    tensors: Tensors = {
        f"member.{number}.{net}.{index}.{part}": array
        for number, member in enumerate(policy.members)
        for net in _NETS
        for index, layer in enumerate(getattr(member, net))
        for part, array in zip(("weight", "bias"), layer, strict=True)
    }
    metadata = _metadata(policy, card)
    metadata["checksum"] = json.dumps(_checksum(metadata, tensors))
    _write_atomically(Path(path), _in_fixed_order(save(tensors, metadata)))


def load_policy(path: str | os.PathLike[str]) -> LearnedPolicy:
    """Read a policy file.

    Raises:
        PolicyFileError: The file does not exist, is no policy file, belongs to another version,
            or its content is incomplete, inconsistent or damaged.
    """
    path = Path(path)
    texts, tensors = _read(path)
    content = _parse(path, texts)
    _check_versions(path, content)
    _check_tensors(path, _expected_shapes(path, content["layer_sizes"]), tensors)
    if content["checksum"] != _checksum(texts, tensors):
        raise PolicyFileError(f"{path}: the content does not match its checksum. {_DAMAGED}")
    try:
        return _build(content, tensors)
    except (ConfigurationError, TypeError, ValueError) as error:
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
        "layer_sizes": [{net: member.sizes(net) for net in _NETS} for member in policy.members],
        "activation": activations[0] if len(set(activations)) == 1 else activations,
        "action_grid": policy.action_grid,
        "goodput_slack": policy.goodput_slack,
        "keeps_steps": policy.keeps_steps,
        "masked": policy.masked,
        "sample": policy.sample,
        **{key: getattr(card, key) for key in _CARD_KEYS},
    }
    try:
        return {
            key: json.dumps(value, allow_nan=False, sort_keys=True)
            for key, value in content.items()
        }
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"A policy card must hold finite numbers, strings, lists and dictionaries: {error}."
        ) from error


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
        Network(chain(number, "policy"), chain(number, "value"), activation)
        for number, activation in zip(range(count), activations, strict=True)
    ]
    card: dict[str, Any] = {key: content[key] for key in _CARD_KEYS}
    for key in ("objectives", "couplings"):
        card[key] = tuple(card[key])
    for key, extreme in (("observation_low", -1.0), ("observation_high", 1.0)):
        seen = np.asarray(card[key], dtype=np.float64)
        card[key] = tuple(_widened(seen, names, extreme).tolist()) if seen.size else ()
    return LearnedPolicy(
        members=tuple(members),
        action_grid=tuple(content["action_grid"]),
        goodput_slack=content.get("goodput_slack"),
        keeps_steps=bool(content.get("keeps_steps")),
        masked=bool(content["masked"]),
        sample=bool(content["sample"]),
        card=PolicyCard(**card),
    )


def _widened(values: NDArray[Any], names: list[str], unseen: float) -> NDArray[Any]:
    """Return values whose last axis are a file's observations with one that has today's."""
    if values.shape[-1] != len(names):
        raise ConfigurationError(
            f"Expected {len(names)} observations in the last axis, got {values.shape[-1]}."
        )
    wide = np.full((*values.shape[:-1], len(OBSERVATION_NAMES)), unseen, dtype=values.dtype)
    wide[..., [OBSERVATION_NAMES.index(name) for name in names]] = values
    return wide


def _read(path: Path) -> tuple[dict[str, str], Tensors]:
    """Return metadata and tensors of a safetensors file, whatever they are."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        raise PolicyFileError(f"{path}: there is no such policy file. Check the path.") from None
    except OSError as error:
        raise PolicyFileError(
            f"{path}: cannot be opened: {error.strerror}. Name a policy file (.safetensors) that "
            "may be read."
        ) from error
    if start.startswith(b"PK"):
        raise PolicyFileError(
            f"{path}: a policy file (.safetensors) was expected, and this is a zip archive, like a "
            "checkpoint of a training. Name the policy.safetensors beside it, which a training "
            f"writes at its end; one that was stopped goes on with: rlbatch train --resume --out "
            f"{path.parent}"
        )
    try:
        with _open(path, framework="np") as file:
            tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), tensors
    except Exception as error:  # a damaged header makes the parser fail in many ways
        raise PolicyFileError(
            f"{path}: cannot be read as a .safetensors file ({error}). It is truncated, damaged or "
            "of another kind. Fetch it again, or make one with: rlbatch train"
        ) from error


def _parse(path: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    missing = [key for key in _KEYS if key not in texts]
    if missing:
        raise PolicyFileError(
            f"{path}: the metadata lacks {', '.join(missing)}; this is no policy file of rlbatch. "
            "Make one with: rlbatch train"
        )
    content: dict[str, Any] = {}
    for key in (*_KEYS, *(key for key in _LATER_KEYS if key in texts)):
        try:
            content[key] = json.loads(texts[key])
        except (ValueError, RecursionError) as error:
            raise PolicyFileError(f"{path}: metadata {key} is no JSON. {_DAMAGED}") from error
    return content


def _check_versions(path: Path, content: Mapping[str, Any]) -> None:
    for key, ours in (
        ("format_version", range(FORMAT_VERSION, FORMAT_VERSION + 1)),
        ("schema_version", range(OLDEST_SCHEMA, SCHEMA_VERSION + 1)),
    ):
        if content[key] not in ours:
            raise PolicyFileError(
                f"{path}: {key} is {content[key]!r}, this rlbatch ({rlbatch.__version__}) reads "
                f"{' to '.join(map(str, sorted({ours[0], ours[-1]})))}; the file was written by "
                f"rlbatch {content['rlbatch_version']}. Use that version, or train the policy "
                "again."
            )
    names = content["observation_names"]
    listed = list(map(str, cast(list[Any], names))) if isinstance(names, list) else list[str]()
    theirs = set(listed)
    earlier = content["schema_version"] < SCHEMA_VERSION and len(theirs) == len(listed) > 0
    if names != list(OBSERVATION_NAMES) and not (earlier and theirs < set(OBSERVATION_NAMES)):
        strange = ", ".join(sorted(theirs ^ set(OBSERVATION_NAMES))) or "their order"
        raise PolicyFileError(
            f"{path}: the observation names are not those of schema {SCHEMA_VERSION} (differing: "
            f"{strange}). Train the policy again."
        )


def _expected_shapes(path: Path, layer_sizes: Any) -> dict[str, tuple[int, ...]]:
    expected: dict[str, tuple[int, ...]] = {}
    try:
        for number, member in enumerate(layer_sizes):
            for net in _NETS:
                sizes = [int(size) for size in member[net]]
                for index, (inputs, outputs) in enumerate(pairwise(sizes)):
                    name = f"member.{number}.{net}.{index}"
                    expected[f"{name}.weight"], expected[f"{name}.bias"] = (
                        (outputs, inputs),
                        (outputs,),
                    )
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise PolicyFileError(f"{path}: metadata layer_sizes is malformed. {_DAMAGED}") from error
    return expected


def _check_tensors(path: Path, expected: dict[str, tuple[int, ...]], tensors: Tensors) -> None:
    complaints = [
        *(f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())),
        *(f"{name} is unknown" for name in sorted(tensors.keys() - expected.keys())),
    ]
    for name in sorted(expected.keys() & tensors.keys()):
        tensor = tensors[name]
        if tensor.shape != expected[name] or tensor.dtype != np.float32:
            complaints.append(
                f"{name} has shape {tensor.shape} and type {tensor.dtype}, expected "
                f"{expected[name]} and float32"
            )
        elif not np.isfinite(tensor).all():
            complaints.append(f"{name} has entries that are not finite")
    if complaints:
        more = f" (and {len(complaints) - 3} more)" if len(complaints) > 3 else ""
        raise PolicyFileError(
            f"{path}: {'; '.join(complaints[:3])}{more}. Save the policy again from a good "
            "checkpoint."
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
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
