"""Named tensors as safetensors files, on a local disk or in an object store, with deterministic bytes."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import safetensors
import safetensors.torch
import torch

from trackstar import storage
from trackstar.errors import TrackStarError

_METADATA_KEY = "trackstar"  # one key with JSON: safetensors writes several in an order that changes
_LONGEST_HEADER = 100_000_000  # the format's own limit


def save(uri: str, contents: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes atomically; names are sorted, so equal contents give equal bytes."""
    ordered = {name: contents[name].detach().cpu().contiguous() for name in sorted(contents)}
    header = {_METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)}
    storage.write_bytes(uri, safetensors.torch.save(ordered, header))


def load(uri: str, only: tuple[str, ...] | None = None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Reads tensors (all, or those named) and metadata; a local file is memory-mapped, of an object only these are read.

    Raises:
        TrackStarError: the file is missing or is not one that `save` wrote.
    """
    path = storage.local_path(uri)
    try:
        if path is not None:
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                contents = {name: file.get_tensor(name) for name in only or file.keys()}
        elif only is None:
            data = storage.read_bytes(uri)
            contents, header = safetensors.torch.load(data), _header(pa.BufferReader(data))[0].get("__metadata__", {})
        else:
            contents, header = _read_some(uri, only)
        return contents, json.loads(header[_METADATA_KEY])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise TrackStarError(f"{uri}: cannot read tensors from here: {error}") from error


def load_contents(uri: str, contents: str, absent: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Reads a file that `fit` wrote, and holds it to what it says that it holds.

    Args:
        uri: The file.
        contents: What its metadata must give as "contents".
        absent: What is missing where there is no such file, or another one: "second moments".

    Raises:
        TrackStarError: it is missing, is not one that `save` wrote, or holds something else.
    """
    if not storage.exists(uri):
        raise TrackStarError(f"{uri}: no {absent} here; run `trackstar fit` first")
    named, metadata = load(uri)
    if metadata.get("contents") != contents:
        raise TrackStarError(f"{uri}: holds no {absent}; run `trackstar fit` to write them")
    return named, metadata


def _read_some(uri: str, only: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Some tensors of a file, and its metadata, without the bytes of the others: a smaller file is made of them in memory."""
    with storage.open_input(uri) as source:
        header, values = _header(source)
        parts, kept, end = [], {}, 0
        for name in only:
            first, last = header[name]["data_offsets"]
            source.seek(values + first)
            parts.append(source.read(last - first))
            kept[name] = {**header[name], "data_offsets": [end, end + last - first]}
            end += last - first
    text = json.dumps(kept).encode()
    text += b" " * (-len(text) % 8)
    made = b"".join([len(text).to_bytes(8, "little"), text, *parts])
    return safetensors.torch.load(made), header.get("__metadata__", {})


def _header(source: pa.NativeFile) -> tuple[dict[str, Any], int]:
    """What the file's header says (name → type, shape, first and last byte), and where the values begin.

    Format: 8 bytes that give the header's length, the header as JSON, the values.
    https://github.com/huggingface/safetensors#format
    """
    length = int.from_bytes(source.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError("not a safetensors file")
    return json.loads(source.read(length)), 8 + length
