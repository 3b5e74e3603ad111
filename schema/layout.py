"""The Arrow schemas of the activation store, a Lance table each, and how rows are keyed.

    samples         a dataset's rows as they came                                  key dataset | sample
    tokens          a run's token ids and where in the text each stands            key run     | sample
    forward         what a sample fires in one SAE: pooled lists, and a blob       key pair    | sample
    parts           one shard's share of a profile; gone once the run is sealed    key pair    | shard
    profiles        counts of every feature over a run, the source of set questions  key pair
    postings        which samples fire a feature, for a segment of a run           key segment | feature
    directions_<d>  decoder directions of SAEs of width d                          key SAE     | feature
    logits          tokens that a feature's direction raises and lowers most       key SAE     | feature
    scores          an evaluated model's score on each sample of a dataset         key evaluation
    label_texts     labels as they are searched by their words                     key label
    label_vectors_<d>  labels as a sentence model of d numbers reads them          key label

A *pair* is one SAE in one run (`run_saes` in SQL), a *segment* a range of its samples. All keys are positive; the one row
with key -1 is the table's fence (see `schema.publish`). Types are signed, because they pack to the same size and engines that
read Lance push filters down on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FORMAT = "1"
FENCE = -1
SAMPLE_BITS = 36  # ordinals below 68 billion
FEATURE_BITS = 24  # SAEs of up to 16.7 million features; packing holds fewer (`schema.packing.MOST_FEATURES`)

_ZSTD = {b"lance-encoding:compression": b"zstd"}
_PLAIN = {b"lance-encoding:compression": b"none"}


def sample_key(owner: int, ordinal: int = 0) -> int:
    """Key of a sample's row under a dataset, run or pair."""
    return owner << SAMPLE_BITS | ordinal


def feature_key(owner: int, feature: int = 0) -> int:
    """Key of a feature's row under a segment or SAE."""
    return owner << FEATURE_BITS | feature


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(name: str, kind: pa.DataType) -> pa.Field:
    """A list whose values zstd packs; Lance reads the setting from the item too."""
    return pa.field(
        name, pa.list_(pa.field("item", kind, nullable=False, metadata=_ZSTD)), nullable=False, metadata=_ZSTD
    )


def _short_lived(name: str, kind: pa.DataType) -> pa.Field:
    """A list that is read once and then deleted: its values are bit-packed, twice as large and four times as quick as with zstd."""
    return pa.field(name, pa.list_(pa.field("item", kind, nullable=False)), nullable=False)


_KEY = _field("key", pa.int64())

SAMPLES = pa.schema(
    [
        _KEY,
        _field("id", pa.utf8()),
        pa.field("record", pa.large_utf8(), nullable=False, metadata=_ZSTD),  # the row's fields as JSON
    ]
)

TOKENS = pa.schema(
    [
        _KEY,
        _list("token_ids", pa.int32()),
        _list("starts", pa.int32()),  # characters of the rendered text
        _list("ends", pa.int32()),
    ]
)

FORWARD = pa.schema(
    [
        _KEY,
        _field("n_tokens", pa.int32()),  # tokens that count, the masked ones left out
        _list("features", pa.int32()),  # pool `any`: ascending ids, first absolute, then differences
        _list("maxima", pa.int16()),  # code of each one's largest activation
        _list("last_features", pa.int32()),  # pool `last`, likewise
        _list("last_values", pa.int16()),
        pa.field(
            "detail", pa.large_binary(), nullable=False, metadata=_PLAIN
        ),  # every token's activations, schema.packing
    ]
)

PARTS = pa.schema(
    [
        _KEY,
        _field("n_samples", pa.int64()),
        _field("n_tokens", pa.int64()),
        _short_lived("features", pa.int32()),  # those that fire in the shard, differences
        _short_lived("samples_any", pa.int32()),
        _short_lived("samples_last", pa.int32()),
        _short_lived("tokens", pa.int32()),
        _short_lived("sums", pa.float64()),
        _short_lived("maxima", pa.int16()),  # float16 bits
        _short_lived("bins", pa.int32()),  # differences of feature * 64 + bin
        _short_lived("bin_counts", pa.int32()),
    ]
)

PROFILES = pa.schema(
    [
        _KEY,
        _field("n_samples", pa.int64()),
        _field("n_tokens", pa.int64()),
        _list("samples_any", pa.int64()),  # d_sae long, as all that follow
        _list("samples_last", pa.int64()),
        _list("tokens", pa.int64()),
        _list("sums", pa.float64()),
        _list("maxima", pa.int16()),
        _list("histogram", pa.int64()),  # d_sae * 64 counts of tokens, row-major
    ]
)

POSTINGS = pa.schema(
    [
        _KEY,
        _list("samples", pa.int32()),  # ordinals within the segment, differences
        _list("maxima", pa.int16()),
        _list("last_samples", pa.int32()),
        _list("last_values", pa.int16()),
    ]
)

LOGITS = pa.schema(
    [
        _KEY,
        _list("top_ids", pa.int32()),  # the largest effect first
        _list("top_values", pa.float32()),
        _list("top_tokens", pa.utf8()),
        _list("bottom_ids", pa.int32()),  # the most negative first
        _list("bottom_values", pa.float32()),
        _list("bottom_tokens", pa.utf8()),
    ]
)

SCORES = pa.schema([_KEY, _list("scores", pa.float64())])  # one a sample, by ordinal; NaN where there is none
LABEL_TEXTS = pa.schema([_KEY, _field("sae", pa.int32()), _field("feature", pa.int32()), _field("text", pa.utf8())])

TABLES: dict[str, pa.Schema] = {
    "samples": SAMPLES,
    "tokens": TOKENS,
    "forward": FORWARD,
    "parts": PARTS,
    "profiles": PROFILES,
    "postings": POSTINGS,
}


SOME_TABLES: dict[str, pa.Schema] = {"logits": LOGITS, "scores": SCORES, "label_texts": LABEL_TEXTS}
"""Made where they are first needed."""


def directions_table(d_model: int) -> str:
    return f"directions_{d_model}"


def label_vectors_table(dimension: int) -> str:
    return f"label_vectors_{dimension}"


def schema_of(table: str) -> pa.Schema:
    """The Arrow schema of a table, those included that not every home has."""
    if table in SOME_TABLES:
        return SOME_TABLES[table]
    if table.startswith("label_vectors_"):
        width = int(table.removeprefix("label_vectors_"))
        vector = pa.list_(pa.field("item", pa.float16(), nullable=False), width)
        return pa.schema([_KEY, _field("sae", pa.int32()), _field("vector", vector)])
    if table.startswith("directions_"):
        width = int(table.removeprefix("directions_"))
        return pa.schema(
            [
                _KEY,
                _field("norm", pa.float32()),
                _field("vector", pa.list_(pa.field("item", pa.float16(), nullable=False), width)),
            ]
        )
    return TABLES[table]


def list_column(
    schema: pa.Schema, name: str, values: npt.NDArray[Any], offsets: npt.NDArray[np.integer[Any]]
) -> pa.ListArray:
    """A list column of a table from its flat values and where each row's begin."""
    kind = schema.field(name).type
    if values.dtype != object:
        values = values.astype(kind.value_type.to_pandas_dtype(), copy=False)
    flat = pa.array(values, kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, type=kind)


def flat_column(column: pa.ChunkedArray | pa.ListArray) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """A list column's flat values and offsets, offsets from 0."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def fence_row(table: str) -> pa.Table:
    """The one row that a commit replaces."""
    schema = schema_of(table)
    return pa.table({f.name: pa.array([_empty(f)], f.type) for f in schema}, schema=schema)


def _empty(field: pa.Field) -> object:
    if field.name == "key":
        return FENCE
    if pa.types.is_fixed_size_list(field.type):
        return [0.0] * field.type.list_size
    if pa.types.is_list(field.type):
        return []
    return {"utf8": "", "binary": b""}.get(_family(field.type), 0)


def _family(kind: pa.DataType) -> str:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "utf8"
    return "binary" if pa.types.is_large_binary(kind) else "number"
