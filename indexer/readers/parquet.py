"""Parquet files, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from indexer.readers.row import Row, plain
from schema.errors import InputError

BLOCK = 1024


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a `.parquet` file; moments and decimals become text, bytes base64."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BLOCK):
                for record in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name} row {number}", plain(record))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # values that Python has no room for too
        raise InputError(
            f"{path.name} is no readable Parquet file after row {number}: {str(error).splitlines()[0][:160]}"
        ) from None
