"""Writing what a run stands on: a dataset's rows as they came, and an SAE's decoder directions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa

from indexer.progress import Bar
from indexer.saes import Sae
from indexer.survey import DatasetSpec, Sample, read_again
from schema.layout import SAMPLES, directions_table, feature_key, sample_key, schema_of
from schema.publish import Staged, write
from schema.store import Store

BLOCK = 2048


def write_samples(store: Store, spec: DatasetSpec, dataset: int, sha256: str, bar: Bar) -> Staged:
    """The dataset's rows as fragments of `samples`.

    Raises:
        InputError: the source has changed since it was surveyed.
    """
    fault: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        samples, ordinal = read_again(spec, sha256), 0
        try:
            while block := list(islice(samples, BLOCK)):
                yield _sample_rows(dataset, ordinal, block)
                ordinal += len(block)
                bar.advance(len(block))
        except Exception as error:  # Arrow would turn it into one of its own
            fault.append(error)
            raise

    try:
        return {"samples": write(store, "samples", batches())}
    except Exception as error:
        raise (fault[0] if fault else error) from None


def _sample_rows(dataset: int, ordinal: int, samples: list[Sample]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            pa.array([sample_key(dataset, ordinal + i) for i in range(len(samples))], pa.int64()),
            pa.array([sample.id for sample in samples], pa.utf8()),
            pa.array([sample.record for sample in samples], pa.large_utf8()),
        ],
        schema=SAMPLES,
    )


def write_directions(store: Store, sae_id: int, sae: Sae) -> Staged:
    """The decoder's columns as float16 rows with their norms, so that the home needs the SAE's file no more."""
    table = directions_table(sae.d_model)
    schema = schema_of(table)
    vectors = sae.W_dec.T  # (d_sae, d_model)

    def batches() -> Iterator[pa.RecordBatch]:
        for begin in range(0, sae.d_sae, BLOCK):
            block = vectors[begin : begin + BLOCK].float().contiguous()
            flat = pa.array(block.half().numpy().reshape(-1), pa.float16())
            keys = np.arange(feature_key(sae_id, begin), feature_key(sae_id, begin + len(block)))
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array(keys, pa.int64()),
                    pa.array(block.norm(dim=1).numpy(), pa.float32()),
                    pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type),
                ],
                schema=schema,
            )

    return {table: write(store, table, batches())}
