"""The spec of an index: all that determines an encoding, and the hash that identifies the index.

Two encodings may be compared only if they were made under equal specs; so the spec is written once, by `fit`, and every
later command checks itself against it and names the fields that differ.
"""

import dataclasses
import hashlib
import json
from typing import Any

from trackstar.errors import TrackStarError

FORMAT_VERSION = 3

ATTRIBUTED = ("all", "outputs", "attention", "mlp")
LAYOUTS = ("blocks", "weights")
MOMENTS = ("none", "factored", "exact")
NORMALISATIONS = ("vector", "block")
PROJECTIONS = ("gaussian", "whitened")
STORAGES = ("bfloat16", "float32", "int8", "sign")
LONG_DOCUMENTS = ("truncate", "split")
_BITS = {"bfloat16": 16, "float32": 32, "int8": 8, "sign": 1}


def bytes_of_row(storage: str, dimension: int) -> int:
    """Bytes of one encoding of `dimension` numbers in the column `encoding`."""
    return -(-dimension * _BITS[storage] // 8)


def _field(help: str, choices: tuple[str, ...] | None = None, **kwargs: Any) -> Any:
    return dataclasses.field(metadata={"help": help, "choices": choices}, **kwargs)


@dataclasses.dataclass(frozen=True)
class Spec:
    """All that determines an encoding. Field help texts are also the command line's.

    Vectors have `dimension` = (number of blocks) · block_rows · block_columns entries: block after block, each row-major.
    """

    # The model and its tokenizer, by content: a checkpoint may move, its weights may not change.
    model_architecture: str = _field("class of the model, for example LlamaForCausalLM")
    model_fingerprint: str = _field("hash of the model's parameters: names, shapes and sampled values")
    model_dtype: str = _field("type in which the model runs", ("float32", "bfloat16"))
    tokenizer_fingerprint: str = _field("hash of the tokenizer's vocabulary and rules")
    vocabulary_size: int = _field("rows of the model's token embedding")
    # Text to examples.
    max_length: int = _field("longest example in tokens; longer documents are truncated or split")
    long_documents: str = _field("what happens to a document longer than max_length", LONG_DOCUMENTS)
    append_eos: bool = _field("whether documents end in the tokenizer's end-of-text token")
    batch_tokens: int = _field("padded tokens in one batch at most")
    # Gradient to vector.
    attributed: str = _field(
        "which matrices of the layers are attributed: all, outputs (those that write into the residual stream: attention's "
        "output projection and the MLP's down projection), attention, or mlp",
        ATTRIBUTED,
    )
    layout: str = _field(
        "pooled blocks of neighbouring layers (the paper's), or one block a weight (a fused query-key-value matrix is one)",
        LAYOUTS,
    )
    layer_groups: int = _field("groups of neighbouring layers in the pooled layout; attention and MLP apart")
    block_rows: int = _field("d0: rows of one block, what the output side of a weight is projected to")
    block_columns: int = _field("d1: columns of one block, what the input side of a weight is projected to")
    num_blocks: int = _field("number of blocks, as the model's layers gave it")
    projection: str = _field(
        "random projection of each weight's gradient: gaussian, or whitened (orthogonal directions behind the inverse roots of "
        "the covariances of the weight's activations and output gradients, fitted on the sample)",
        PROJECTIONS,
    )
    projection_seed: int = _field("seed of the random projections")
    projection_fingerprint: str = _field("hash of the whitened projections; empty for gaussian")
    whitening_damping: float = _field(
        "damping of the covariances' inverse roots, in units of the mean eigenvalue; whitened only"
    )
    moments: str = _field("optimizer-state correction: none, factored (row and column), exact (elementwise)", MOMENTS)
    moments_source: str = _field("where the second moments come from: none, adamw, adafactor, safetensors, estimated")
    moments_fingerprint: str = _field("hash of the second moments; empty without")
    moments_epsilon: float = _field("epsilon in G / (sqrt(V) + epsilon); exact moments only")
    preconditioner: str = _field("hash of R_train; 'none' where encodings are not preconditioned")
    damping: float = _field("damping of R's inverse root, in units of a block's mean eigenvalue")
    normalisation: str = _field("unit norm over the whole vector, or block by block first", NORMALISATIONS)
    # Storage.
    storage: str = _field(
        "form of the stored encodings: bfloat16, float32, int8 (a byte a number and a scale a row), sign (a bit a number)",
        STORAGES,
    )
    stores_text: bool = _field("whether the index holds the examples' text")
    format_version: int = _field("version of the format on disk", default=FORMAT_VERSION)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata.get("choices")
            value = getattr(self, field.name)
            if choices and value not in choices:
                raise TrackStarError(f"spec: {field.name} is {value!r}; it must be one of {', '.join(choices)}")
            if isinstance(value, int) and not isinstance(value, bool) and value < (0 if "seed" in field.name else 1):
                raise TrackStarError(f"spec: {field.name} is {value}; it must be positive")

    @property
    def block_dimension(self) -> int:
        """Entries of one block, d0·d1."""
        return self.block_rows * self.block_columns

    @property
    def dimension(self) -> int:
        """Entries of one encoding, d."""
        return self.num_blocks * self.block_dimension

    def describe_blocks(self) -> str:
        """What an encoding consists of, in words: "d = 16,184: one block of 17×17 a weight (56), each to unit norm first"."""
        kind = "one block of {} a weight ({})" if self.layout == "weights" else "pooled blocks of {} ({})"
        which = "" if self.attributed == "all" else f", {self.attributed}"
        blocks = kind.format(f"{self.block_rows}×{self.block_columns}", f"{self.num_blocks}{which}")
        return f"d = {self.dimension:,}: {blocks}, " + (
            "each to unit norm first" if self.normalisation == "block" else "unit norm of the whole"
        )

    @property
    def bytes_per_encoding(self) -> int:
        """Bytes of one stored encoding, without the four of its scale (int8)."""
        return bytes_of_row(self.storage, self.dimension)

    @property
    def has_scales(self) -> bool:
        """Whether each stored encoding has a scale in a column of its own."""
        return self.storage == "int8"

    def describe_storage(self) -> str:
        """How an encoding is stored, in words: "sign, 2,023 bytes a row"."""
        scale = " and a scale of 4" if self.has_scales else ""
        return f"{self.storage}, {self.bytes_per_encoding:,} bytes a row{scale}"

    @property
    def hash(self) -> str:
        """Identity of the index: 16 hexadecimal digits of SHA-256 over the canonical JSON."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Indented JSON with the hash beside the fields, for people to read."""
        return json.dumps({"hash": self.hash, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "spec.json") -> "Spec":
        """Parses `to_json`'s output.

        Raises:
            TrackStarError: not JSON, another format version, unknown or missing fields, or a hash that does not match.
        """
        try:
            fields = json.loads(text)
            stored_hash = fields.pop("hash")
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise TrackStarError(f"{where}: not the spec of an index ({error})") from error
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise TrackStarError(
                f"{where}: format version {version}; this program reads version {FORMAT_VERSION}. An index of another version "
                "has to be fitted and built again, in another folder (`trackstar fit`, `trackstar build-index`)"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        if known != set(fields):
            raise TrackStarError(f"{where}: unknown or missing fields: {', '.join(sorted(known ^ set(fields)))}")
        spec = cls(**fields)
        if spec.hash != stored_hash:
            raise TrackStarError(f"{where}: its hash is {stored_hash}, its fields give {spec.hash}: edited by hand?")
        return spec

    def check_unit_norm(self, unit_norm: bool) -> None:
        """Raises TrackStarError where scores without unit norm are asked of encodings whose blocks have lost their norms."""
        if not unit_norm and self.normalisation == "block":
            raise TrackStarError(
                "--unit_norm false needs the sizes of all blocks, and in this index each block was given unit norm "
                "(normalisation 'block'): fit another index with --normalisation vector, and build it"
            )

    def differences(self, other: "Spec") -> list[str]:
        """One line a field that differs: "block_rows: 64 here, 16 there"."""
        lines = []
        for field in dataclasses.fields(self):
            here, there = getattr(self, field.name), getattr(other, field.name)
            if here != there:
                lines.append(f"{field.name}: {here!r} here, {there!r} there")
        return lines
