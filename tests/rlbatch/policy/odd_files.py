"""Policy files as they should not be: valid ones, changed at random, and written by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from rlbatch.policy import file

Parts = tuple[dict[str, str], dict[str, np.ndarray]]

_MARK = "@@mark@@"
ODD = [
    *("null", "true", "false", "0", "-1", "1", "2", "3", "1.5", "1.0", "1e30", "1e300", "-1e308"),
    *("Infinity", "-Infinity", "NaN", "1e999", "9" * 400, "-" + "9" * 400, "9" * 5000),
    *('""', '"x"', '"\\u001b]0;title\\u0007"', '"\\ud800"', '"\\u202e"', '"tanh"', '"relu"'),
    *("[]", "{}", "[[]]", "[null]", "[0]", "[0, 0]", "[-1, 0, 1]", '["target"]', "[1e308, 0]"),
    *("[" * 500 + "]" * 500, "[" * 5000 + "]" * 5000, f"[{', '.join(['1'] * 20_000)}]"),
    *('{"policy": [79, 5], "value": [79, 1]}', '{"a": {"b": NaN}}', '{"a": 1, "a": 2}'),
    *("4294967296", "18446744073709551616", "65537", "0.5", "-0.0", "1e-320"),
]


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def parts_of(raw: bytes) -> Parts:
    header, body = split(raw)
    texts = header.pop("__metadata__")
    tensors = {
        name: np.frombuffer(body[slice(*info["data_offsets"])], np.float32).reshape(info["shape"])
        for name, info in header.items()
    }
    return texts, tensors


def sealed(parts: Parts) -> bytes:
    """Write a file whose checksum is right, whatever is in it."""
    texts, tensors = dict(parts[0]), parts[1]
    texts.pop("checksum", None)
    texts["checksum"] = json.dumps(file._checksum(texts, tensors))
    header: dict[str, Any] = {"__metadata__": texts}
    place = 0
    names = {"f": "F", "i": "I", "u": "U"}
    for name, tensor in tensors.items():
        end = place + tensor.nbytes
        dtype = f"{names[tensor.dtype.kind]}{8 * tensor.dtype.itemsize}"
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [place, end]}
        place = end
    return joined(json.dumps(header), b"".join(tensor.tobytes() for tensor in tensors.values()))


def joined(header: str, body: bytes) -> bytes:
    encoded = header.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + body


def changed_json(text: str, rng: random.Random) -> str:
    """Return a JSON text with one of its parts replaced, dropped, doubled or renamed."""
    value = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    root = [value]
    walk(root)
    node, key = rng.choice(places)
    how = rng.random()
    if how < 0.6 or node is root:
        node[key] = _MARK
    elif how < 0.75:
        del node[key]
    elif isinstance(node, list):
        node.insert(key, node[key])
    else:
        node[rng.choice(["x", "", "policy", "\x1b[2J"])] = node[key]
    return json.dumps(root[0]).replace(f'"{_MARK}"', rng.choice(ODD))


def changed_entry(raw: bytes, rng: random.Random) -> bytes:
    """Change an entry of the metadata or two; the checksum is right."""
    texts, tensors = parts_of(raw)
    for _ in range(rng.choice([1, 1, 1, 2])):
        key = rng.choice(list(texts))
        texts[key] = rng.choice([changed_json, changed_json, lambda *_: rng.choice(ODD)])(
            texts[key] if len(texts[key]) < 10_000 else "[]", rng
        )
        if rng.random() < 0.03:
            del texts[key]
        try:
            json.loads(texts.get(key, "0"))
        except (ValueError, RecursionError):
            break  # no base for another change
    return sealed((texts, tensors))


def changed_tensor(raw: bytes, rng: random.Random) -> bytes:
    """Change the weights, their shapes or their types; the checksum is right."""
    texts, tensors = parts_of(raw)
    name = rng.choice(list(tensors))
    tensor = tensors[name].copy()
    changes: list[Callable[[], Any]] = [
        lambda: tensor * np.float32(rng.choice([1e30, 1e36, -1e37, 0.0, 1e-45])),
        lambda: np.where(rng.random() < 2, np.float32(rng.choice([np.nan, np.inf, 3e38])), tensor),
        lambda: np.full_like(tensor, rng.choice([3e38, -3e38, 1e20])),
        lambda: tensor.reshape(-1),
        lambda: tensor[..., None],
        lambda: tensor[:-1],
        lambda: tensor.astype(rng.choice([np.float64, np.float16, np.int32, np.uint8])),
        lambda: tensor.T,
        lambda: tensor[:0],
    ]
    with np.errstate(all="ignore"):
        tensors[name] = np.ascontiguousarray(rng.choice(changes)())
    if rng.random() < 0.1:
        tensors[rng.choice(["member.0.policy.9.weight", "\x1b]52;c;eA==\x07", ""])] = tensors[name]
    return sealed((texts, tensors))


def changed_header(raw: bytes, rng: random.Random) -> bytes:
    """Change the header anywhere, the places of tensors as well."""
    header, body = split(raw)
    return joined(changed_json(json.dumps(header), rng), body)


def changed_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Set, drop, double or cut off some bytes, half of the time within the header."""
    content = bytearray(raw)
    end = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(rng.choice([1, 1, 2, 5, 40])):
        if not content:
            break
        place = rng.randrange(end if rng.random() < 0.5 else len(content))
        place = min(place, len(content) - 1)
        how = rng.random()
        if how < 0.7:
            content[place] = rng.randrange(256)
        elif how < 0.8:
            del content[place : place + rng.choice([1, 4, 100])]
        elif how < 0.9:
            content[place:place] = content[place : place + rng.choice([1, 4, 100])]
        else:
            del content[max(place, 1) :]
    return bytes(content)


CHANGES = {
    "entries": changed_entry,
    "tensors": changed_tensor,
    "header": changed_header,
    "bytes": changed_bytes,
}
