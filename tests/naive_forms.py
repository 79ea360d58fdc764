"""How encodings are stored, written down a second time: number by number, without anything of the package."""

import math

import numpy as np
import torch

STORAGES = ("bfloat16", "float32", "int8", "sign")
PACKED = ("int8", "sign")


def numbers(vectors: torch.Tensor, storage: str) -> tuple[np.ndarray, np.ndarray]:
    """c [N, d] and f [N], both float64: what is stored stands for f·c."""
    rows = vectors.double().numpy()
    ones = np.ones(len(rows))
    if storage == "bfloat16":
        return _nearest_bfloat16(rows.astype(np.float32)).astype(np.float64), ones
    if storage == "float32":
        return rows.astype(np.float32).astype(np.float64), ones
    if storage == "sign":
        return np.where(rows >= 0, 1.0, -1.0), ones / np.sqrt(float(rows.shape[1]))
    scales = np.array([np.float32(max(abs(float(number)) for number in row) / 127) for row in rows], np.float32)
    codes = [[round(float(x) / float(scale)) for x in row] for row, scale in zip(rows, scales, strict=True)]
    return np.array(codes, np.float64).reshape(rows.shape), scales.astype(np.float64)


def values(vectors: torch.Tensor, storage: str) -> np.ndarray:
    """The encodings that stored rows stand for, [N, d] float64."""
    codes, factors = numbers(vectors, storage)
    return codes * factors[:, None]


def row_bytes(vectors: torch.Tensor, storage: str) -> list[bytes]:
    """The column `encoding`."""
    codes, _ = numbers(vectors, storage)
    if storage == "int8":
        return [bytes(int(number) % 256 for number in row) for row in codes]
    if storage == "sign":
        return [_bits([number > 0 for number in row]) for row in codes]
    if storage == "float32":
        return [row.astype("<f4").tobytes() for row in codes]
    return [(row.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes() for row in codes]


def decoded(raw: bytes, storage: str, dimension: int, scale: float = 1.0) -> list[float]:
    """The encoding of one row of a file, by the description of the format."""
    if storage == "int8":
        return [(byte - 256 if byte > 127 else byte) * scale for byte in raw]
    if storage == "sign":
        size = 1 / math.sqrt(dimension)
        return [size if raw[j // 8] >> (j % 8) & 1 else -size for j in range(dimension)]
    if storage == "float32":
        return np.frombuffer(raw, "<f4").astype(np.float64).tolist()
    return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64).tolist()


def _bits(row: list[bool]) -> bytes:
    found = bytearray(math.ceil(len(row) / 8))
    for j, is_set in enumerate(row):
        found[j // 8] |= is_set << (j % 8)
    return bytes(found)


def _nearest_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 → the nearest bfloat16, ties to even, as float32."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)
