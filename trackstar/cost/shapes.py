"""How much work there is: floating-point operations and bytes, from the shapes of model, index, corpus and queries alone.

FLOPs count a multiplication and an addition as two. Attention's own products (scores and values) are left out: at T tokens they
are T·h a layer and token against 12 h² for its matrices, 3 % at T = 1,500 and h = 4,096.
"""

import dataclasses
from collections.abc import Sequence

from trackstar.attributed import select
from trackstar.covariances import Part
from trackstar.models import LoadedModel, find_weights
from trackstar.spec import Spec

SCORE_BYTES = 8 + 4 + 8
"""Of an entry of a top-k array: float64 score, int32 file, int64 row; its id comes on top."""
ID_BYTES = 24
"""Of an example id, with its offset in the array, typically."""
SECOND_LOOKS = 2.6
"""Pairs that are scored in float64 for each place of the ranking; 2.5 to 2.7 as measured (docs/benchmarks.md)."""
EIGEN_FLOPS = 9.0
"""Times n³: a symmetric eigendecomposition with its vectors (reduction 4/3, the tridiagonal part and back-transformation)."""
OPEN_FILES = 64
"""Files after which a scan settles its candidates (`trackstar.scoring`)."""


@dataclasses.dataclass(frozen=True)
class EncodingShape:
    """What encoding one example depends on."""

    matrices: tuple[tuple[int, int], ...]
    """(m, n) of every attributed weight: outputs, inputs."""
    unattributed: int
    """Entries of the LM head, and of the layers' matrices that are not attributed: every token is multiplied with them, too."""
    block_rows: int
    block_columns: int
    num_blocks: int
    moments: str
    """none, factored or exact."""
    preconditioned: bool
    bytes_per_encoding: int

    @classmethod
    def of(cls, loaded: LoadedModel, spec: Spec) -> "EncodingShape":
        """Of a model under a spec, whichever of its weights `loaded` has been restricted to."""
        weights = find_weights(loaded.model)
        attributed = select(weights, spec.attributed)
        head = loaded.model.get_output_embeddings()
        unattributed = sum(weight.outputs * weight.inputs for weight in set(weights) - set(attributed))
        return cls(
            tuple((weight.outputs, weight.inputs) for weight in attributed),
            unattributed + (head.weight.numel() if head is not None else 0),
            spec.block_rows,
            spec.block_columns,
            spec.num_blocks,
            spec.moments,
            spec.preconditioner != "none",
            spec.bytes_per_encoding,
        )

    @classmethod
    def without_model(cls, spec: Spec) -> "EncodingShape":
        """Of a spec alone, for what needs no gradients."""
        preconditioned = spec.preconditioner != "none"
        rows, columns, blocks = spec.block_rows, spec.block_columns, spec.num_blocks
        return cls((), 0, rows, columns, blocks, spec.moments, preconditioned, spec.bytes_per_encoding)

    @property
    def block_dimension(self) -> int:
        """d_b = d₀·d₁."""
        return self.block_rows * self.block_columns

    @property
    def dimension(self) -> int:
        """d."""
        return self.num_blocks * self.block_dimension

    @property
    def parameters(self) -> int:
        """Entries of all matrices that a token is multiplied with."""
        return self.attributed + self.unattributed

    @property
    def attributed(self) -> int:
        """Entries of the attributed weights."""
        return sum(m * n for m, n in self.matrices)

    def floor_flops(self, tokens: float) -> float:
        """Forward pass, 2 a parameter and token, and backward pass to the inputs, 2 more: the frozen floor."""
        return 4.0 * self.parameters * tokens

    def projection_flops(self, tokens: float, examples: float) -> float:
        """Lᵀ s and Rᵀ a of every token and the sum of their outer products; with exact moments, G, its correction and Lᵀ G R."""
        d0, d1 = self.block_rows, self.block_columns
        if self.moments != "exact":
            return tokens * sum(2.0 * (m * d0 + n * d1 + d0 * d1) for m, n in self.matrices)
        forming = tokens * sum(2.0 * m * n for m, n in self.matrices)
        return forming + examples * sum(m * n + 2.0 * (m * n * d1 + m * d0 * d1) for m, n in self.matrices)

    def precondition_flops(self, examples: float) -> float:
        """R^(-1/2) E, block by block."""
        return 2.0 * self.num_blocks * self.block_dimension**2 * examples if self.preconditioned else 0.0

    def encode_flops(self, tokens: float, examples: float) -> float:
        """All of a document's way to its encoding."""
        return self.floor_flops(tokens) + self.projection_flops(tokens, examples) + self.precondition_flops(examples)

    def squares_flops(self, tokens: float, examples: float) -> float:
        """The floor and Σ G ⊙ G, as `fit` estimates second moments."""
        return self.floor_flops(tokens) + 2.0 * self.attributed * (tokens + examples)

    def gram_flops(self, examples: float) -> float:
        """Σ vec(E_b) vec(E_b)ᵀ over all blocks."""
        return 2.0 * self.num_blocks * self.block_dimension**2 * examples

    @property
    def gram_bytes(self) -> int:
        """One file of sums of R: float64."""
        return 8 * self.num_blocks * self.block_dimension**2

    @property
    def preconditioner_bytes(self) -> int:
        """Eigenvectors in float64 and the inverse root in float32, of all blocks."""
        return 12 * self.num_blocks * self.block_dimension**2 if self.preconditioned else 0

    @property
    def projection_bytes(self) -> int:
        """Bytes of all weights' L and R, float32."""
        return 4 * sum(m * self.block_rows + n * self.block_columns for m, n in self.matrices)

    def eigen_flops(self, decompositions: int = 1, products: int = 1) -> float:
        """Eigendecompositions and float64 products of two matrices, so many for each block."""
        return self.num_blocks * self.block_dimension**3 * (EIGEN_FLOPS * decompositions + 2.0 * products)


@dataclasses.dataclass(frozen=True)
class WhiteningShape:
    """What the covariances behind whitened projections take."""

    passes: int
    """Over the sample."""
    of_tokens: tuple[int, ...]
    """Sizes of the covariances of tokens' vectors."""
    of_gradients: tuple[tuple[int, int], ...]
    """(m, n) of the weights whose gradients are formed for theirs."""
    roots: tuple[int, ...]
    """Sizes of the matrices whose inverse roots are taken."""

    @classmethod
    def of(cls, passes: Sequence[Sequence[Part]], moments: str) -> "WhiteningShape":
        """Of planned passes; with factored moments each weight scales a covariance that it shares in its own way."""
        parts = [part for group in passes for part in group]
        sides: dict[str, dict[str, int]] = {}
        for part in parts:
            if part.exact:
                sides.setdefault(part.weight, {})[part.side] = part.size
        roots = [part.size for part in parts for _ in (part.serves if moments == "factored" else (part.weight,))]
        return cls(
            len(passes),
            tuple(part.size for part in parts if not part.exact),
            tuple((size["left"], size["right"]) for size in sides.values()),
            tuple(roots),
        )

    @property
    def largest(self) -> int:
        """Size of the largest covariance."""
        return max(self.roots)

    @property
    def sum_bytes(self) -> int:
        """Bytes of all sums, float32."""
        return 4 * (sum(k * k for k in self.of_tokens) + sum(m * m + n * n for m, n in self.of_gradients))

    def floor_flops(self, encoding: EncodingShape, tokens: float) -> float:
        """The frozen floor of every pass."""
        return self.passes * encoding.floor_flops(tokens)

    def sum_flops(self, tokens: float, examples: float) -> float:
        """The sums: x xᵀ of every token; or G, its correction, G̃ G̃ᵀ and G̃ᵀ G̃."""
        of_tokens = tokens * sum(2.0 * k * k for k in self.of_tokens)
        forming = sum(2.0 * m * n for m, n in self.of_gradients) * tokens
        squaring = sum(m * n + 2.0 * m * n * (m + n) for m, n in self.of_gradients) * examples
        return of_tokens + forming + squaring

    def root_flops(self, encoding: EncodingShape) -> float:
        """Eigendecompositions, and the roots times orthogonal directions."""
        return sum(_root_flops(k, max(encoding.block_rows, encoding.block_columns)) for k in self.roots)

    def largest_root(self, encoding: EncodingShape) -> float:
        """Share of `root_flops` that the largest root has: no number of machines takes less time than it."""
        width = max(encoding.block_rows, encoding.block_columns)
        return _root_flops(self.largest, width) / self.root_flops(encoding)


def _root_flops(size: int, width: int) -> float:
    """Of the root of a matrix of `size` rows, times `width` directions at most."""
    return EIGEN_FLOPS * float(size) ** 3 + 4.0 * size * size * width


@dataclasses.dataclass(frozen=True)
class CorpusShape:
    """What is to be read and encoded, extrapolated from a sample where it is not known."""

    items: int
    """Work items that are still to be done."""
    text_bytes: float
    """Bytes as they lie on disk."""
    examples: float
    tokens: float
    padded_tokens: float
    """Tokens with the padding of their batches."""
    items_done: int = 0
    shards: int = 0


@dataclasses.dataclass(frozen=True)
class ScanShape:
    """What is to be scanned, with how many queries."""

    rows: float
    files: int
    groups: int
    """Elements of work, each a group of files."""
    index_bytes: float
    queries: int
    top_k: int
    ends: int
    """2 where opponents are looked for, else 1."""
    changed: bool
    """Whether scores are under another preconditioner than the index's."""
    storage: str = "bfloat16"
    """Form of the stored encodings."""

    @property
    def settlings(self) -> int:
        """How often a scan scores its candidates in float64: after each group, and after 64 files of one."""
        return self.groups * -(-self.files // max(1, self.groups * OPEN_FILES))

    def product_flops(self, dimension: int) -> float:
        """Every row with every query."""
        return 2.0 * self.rows * self.queries * dimension

    def unpacked_numbers(self, dimension: int) -> float:
        """Numbers that are unpacked before they are multiplied."""
        return self.rows * dimension if self.storage in ("int8", "sign") else 0.0

    def norm_flops(self, shape: EncodingShape) -> float:
        """‖M φ‖ of every row, where the preconditioner changes."""
        return 2.0 * self.rows * shape.dimension * shape.block_dimension if self.changed else 0.0

    def rescored_pairs(self) -> float:
        """Pairs of query and row that are scored in float64."""
        per_settling = min(SECOND_LOOKS * self.top_k, self.rows / max(1, self.settlings))
        return self.settlings * self.queries * self.ends * per_settling

    def weighed_flops(self, shape: EncodingShape) -> float:
        """‖M φ‖ once more in float64, of the rows that may win in each settling."""
        rows = min(self.rows, self.rescored_pairs())
        return 2.0 * rows * shape.dimension * shape.block_dimension if self.changed else 0.0

    def merged_entries(self) -> float:
        """Entries of the top-k arrays that the groups hand on."""
        return self.groups * self.queries * self.ends * min(self.top_k, self.rows / max(1, self.groups))

    def shuffle_bytes(self) -> float:
        """Bytes of these arrays: an upper bound of what is shuffled, since a runner may merge before it sends."""
        return self.merged_entries() * (SCORE_BYTES + ID_BYTES)


@dataclasses.dataclass(frozen=True)
class StepsShape:
    """What a tail-patch run does."""

    steps: int
    """Distinct proponents, and steps for the learning rate."""
    document_tokens: float
    query_tokens: float
    """Of all (step, query) pairs, before and after."""
    tasks: int


def parameters_of(loaded: LoadedModel) -> int:
    """All parameters of a model."""
    return sum(parameter.numel() for parameter in loaded.model.parameters())
