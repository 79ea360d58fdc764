"""Named tensors as safetensors files, on a local disk or in an object store, with deterministic bytes."""

import json
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch

from trackstar import storage
from trackstar.errors import TrackStarError

_METADATA_KEY = "trackstar"  # one key with JSON: safetensors writes several in an order that changes


def save(uri: str, contents: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes atomically; names are sorted, so equal contents give equal bytes."""
    ordered = {name: contents[name].detach().cpu().contiguous() for name in sorted(contents)}
    header = {_METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)}
    storage.write_bytes(uri, safetensors.torch.save(ordered, header))


def load(uri: str, only: tuple[str, ...] | None = None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Reads tensors (all, or those named) and metadata; a local file is memory-mapped.

    Raises:
        TrackStarError: the file is missing or is not one that `save` wrote.
    """
    path = storage.local_path(uri)
    try:
        if path is not None:
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                contents = {name: file.get_tensor(name) for name in only or file.keys()}
        else:
            data = storage.read_bytes(uri)
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
            everything = safetensors.torch.load(data)
            contents = {name: everything[name] for name in only or everything}
        return contents, json.loads(header[_METADATA_KEY])
    except (OSError, safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise TrackStarError(f"{uri}: cannot read tensors from here: {error}") from error
