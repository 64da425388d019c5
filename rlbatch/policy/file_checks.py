"""What a policy file is refused for, from its header alone: no weight has been read by then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import rlbatch
from rlbatch.errors import PolicyFileError
from rlbatch.observation import OBSERVATION_NAMES, SCHEMA_VERSION
from rlbatch.policy.container import TensorInfo, parse_json
from rlbatch.policy.metadata import KEYS, LATER_KEYS, complaints, is_count
from rlbatch.text import shown

FORMAT_VERSION, RECURRENT_VERSION = 1, 2
"""Of files of networks alone, and of those with a memory: what knows only the first kind refuses
the other."""
OLDEST_SCHEMA = 1

DAMAGED = "The file is damaged; fetch it again, or train one anew."


def parse(path: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of the metadata's entries, which are JSON."""
    missing = [key for key in KEYS if key not in texts]
    if missing:
        raise PolicyFileError(
            f"{path}: the metadata lacks {', '.join(missing)}; this is no policy file of rlbatch. "
            "Make one with: rlbatch train"
        )
    content: dict[str, Any] = {}
    for key in (*KEYS, *(key for key in LATER_KEYS if key in texts)):
        try:
            content[key] = parse_json(texts[key])
        except (ValueError, RecursionError) as error:
            raise PolicyFileError(f"{path}: metadata {key} is no JSON. {DAMAGED}") from error
    return content


def check_versions(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a file of another format, or whose network sees something else."""
    for key, oldest, newest in (
        ("format_version", FORMAT_VERSION, RECURRENT_VERSION),
        ("schema_version", OLDEST_SCHEMA, SCHEMA_VERSION),
    ):
        if not is_count(content[key]) or not oldest <= content[key] <= newest:
            reads = f"{newest}" if oldest == newest else f"{oldest} to {newest}"
            raise PolicyFileError(
                f"{path}: {key} is {shown(repr(content[key]))}, this rlbatch "
                f"({rlbatch.__version__}) reads {reads}; the file was written by rlbatch "
                f"{shown(content['rlbatch_version'])}. Use that version, or train the policy again."
            )
    if (content["format_version"] == RECURRENT_VERSION) != bool(content.get("memory_sizes")):
        raise PolicyFileError(
            f"{path}: format_version is {content['format_version']} and memory_sizes "
            f"{shown(repr(content.get('memory_sizes')))}, which do not go together. {DAMAGED}"
        )
    names = content["observation_names"]
    listed = list(map(str, cast(list[Any], names))) if isinstance(names, list) else list[str]()
    theirs, ours = set(listed), set(OBSERVATION_NAMES)
    earlier = content["schema_version"] < SCHEMA_VERSION and len(theirs) == len(listed) > 0
    if names != list(OBSERVATION_NAMES) and not (earlier and theirs < ours):
        strange = [*map(shown, sorted(theirs - ours)), *sorted(ours - theirs)]
        differing = ", ".join(strange[:8]) or "their order"
        raise PolicyFileError(
            f"{path}: the observation names are not those of schema {SCHEMA_VERSION} (differing: "
            f"{differing}{' and others' if len(strange) > 8 else ''}). Train the policy again."
        )


def check_entries(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse an entry that is of the wrong kind, or larger than a policy's ever is."""
    for complaint in complaints(content):
        raise PolicyFileError(f"{path}: metadata {complaint}. {DAMAGED}")


def check_infos(
    path: Path, expected: Mapping[str, tuple[int, ...]], infos: Mapping[str, TensorInfo]
) -> None:
    """Refuse a file whose header tells of other tensors than its metadata."""
    found = [
        *(f"{name} is missing" for name in sorted(expected.keys() - infos.keys())),
        *(f"{shown(name)} is unknown" for name in sorted(infos.keys() - expected.keys())),
    ]
    for name in sorted(expected.keys() & infos.keys()):
        info = infos[name]
        if info.shape != expected[name] or info.dtype != "float32":
            found.append(
                f"{name} has shape {shown(info.shape)} and type {shown(info.dtype)}, expected "
                f"{expected[name]} and float32"
            )
    complain(path, found)


def complain(path: Path, found: Sequence[str]) -> None:
    """Refuse a file for what is wrong with its tensors, if anything is."""
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise PolicyFileError(
            f"{path}: {'; '.join(found[:3])}{more}. Save the policy again from a good checkpoint."
        )
