"""Reads a `.safetensors` file: its header first, within limits, and weights only when asked for.

The layout (https://github.com/huggingface/safetensors#format): eight bytes, the length of the
header; the header, a JSON object of tensor name to dtype, shape and place, with texts under
`__metadata__`; then the tensors' bytes, without gaps. Nothing of it is executed.

Whatever is wrong with a file is a `ValueError` here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from rlbatch.text import shown

MAX_HEADER = 1 << 20
"""Bytes of a header that is read; those of policies have some thousand."""
MAX_WEIGHTS = 1 << 28
"""Bytes of weights that are read; those of policies have some million."""

Tensors = dict[str, NDArray[Any]]

_METADATA = "__metadata__"
_LENGTH = 8  # bytes of the header's length
_MOST_AXES = 8
_DTYPES = {
    **{"F16": "float16", "F32": "float32", "F64": "float64", "BOOL": "bool"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor.

    Attributes:
        dtype: NumPy's name of its type where it has one, else the file's.
        shape: Lengths of its axes.
        start: First byte after the header.
        end: First byte that is no longer its own.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """Everything in a file but its weights.

    Attributes:
        texts: The metadata.
        tensors: What there is, by name.
        offset: Where the weights begin.
    """

    texts: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    offset: int


def read_header(file: BinaryIO) -> Header:
    """Return the header of an opened file; no weight is read.

    Raises:
        ValueError: It is not well-formed, or longer than `MAX_HEADER`.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(_exactly(file, _LENGTH), "little")
    if not 2 <= length <= size - _LENGTH:
        raise ValueError(f"its header would have {length} bytes, and the file has {size}")
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length} bytes, and a policy file's at most {MAX_HEADER}")
    try:
        content = parse_json(_exactly(file, length).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is no JSON: {shown(str(error))}") from error
    if not isinstance(content, dict):
        raise ValueError("its header is no JSON object")
    entries = cast("dict[str, Any]", content)
    texts = cast("dict[str, str]", entries.pop(_METADATA, {}))
    if type(texts) is not dict or any(type(text) is not str for text in texts.values()):
        raise ValueError("its metadata is no list of texts")
    tensors = {name: _info(name, entry) for name, entry in entries.items()}
    _check_places(tensors, size - _LENGTH - length)
    return Header(texts, tensors, _LENGTH + length)


def read_tensors(file: BinaryIO, header: Header) -> Tensors:
    """Return the tensors of an opened file.

    Raises:
        ValueError: They have more than `MAX_WEIGHTS` bytes, or the file ends before.
    """
    total = sum(info.end - info.start for info in header.tensors.values())
    if total > MAX_WEIGHTS:
        raise ValueError(f"it holds {total} bytes of weights, and a policy at most {MAX_WEIGHTS}")
    file.seek(header.offset)
    raw = _exactly(file, total)
    return {
        name: np.frombuffer(raw[info.start : info.end], np.dtype(info.dtype).newbyteorder("<"))
        .reshape(info.shape)
        .astype(info.dtype, copy=False)
        for name, info in header.tensors.items()
    }


def parse_json(text: str) -> Any:
    """Return what a JSON text says; one that says a thing twice or no finite number is refused.

    Raises:
        ValueError: It is no such text.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)


def _exactly(file: BinaryIO, count: int) -> bytes:
    raw = file.read(count)
    if len(raw) != count:
        raise ValueError(f"it ends where {count - len(raw)} more bytes are expected")
    return raw


def _info(name: str, entry: Any) -> TensorInfo:
    wrong = ValueError(f"its header says {shown(entry)} of the tensor {shown(name)}")
    if not isinstance(entry, dict):
        raise wrong
    fields = cast("dict[str, Any]", entry)
    if fields.keys() != {"dtype", "shape", "data_offsets"} or not isinstance(fields["dtype"], str):
        raise wrong
    shape, places = fields["shape"], fields["data_offsets"]
    if not (_are_counts(shape) and _are_counts(places) and len(places) == 2):
        raise wrong
    start, end = places
    dtype = _DTYPES.get(fields["dtype"], fields["dtype"])
    known = fields["dtype"] in _DTYPES
    if known and math.prod(shape) * np.dtype(dtype).itemsize != end - start:
        raise wrong
    return TensorInfo(dtype, tuple(shape), start, end)


def _are_counts(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    counts = cast("list[Any]", values)
    return len(counts) <= _MOST_AXES and all(type(count) is int and count >= 0 for count in counts)


def _check_places(tensors: Mapping[str, TensorInfo], size: int) -> None:
    """Refuse tensors that overlap or leave gaps, where something else could hide."""
    place = 0
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.start != place or info.end < place:
            raise ValueError("its tensors overlap or leave gaps")
        place = info.end
    if place != size:
        raise ValueError(f"its header tells of {place} bytes of weights, and it holds {size}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)
