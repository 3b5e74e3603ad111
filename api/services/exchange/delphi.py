"""Delphi's cache of activations, so that it labels features without a second pass through the model.

    latents/<hookpoint>/<first>_<last>.safetensors   locations (n, 3) of row, position and latent - first; activations; tokens
    latents/<hookpoint>/config.json
    samples.jsonl                                    ours: where each sample lies, for whoever takes the cache in

Delphi reads windows of 32 tokens out of rows of 256. Samples are laid one after another, each padded to whole windows, so that
no window holds two samples and none is all padding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from api.services.exchange.delphi_reading import read_delphi
from api.services.exchange.examples import CHUNK
from api.services.exchange.files import claim, lines, whole_file
from api.services.exchange.plan import Plan
from api.services.exchange.tensors import Spool, write_tensors
from api.services.exchange.whole import Whole
from api.services.provenance import provenance
from schema.errors import InputError
from schema.layout import flat_column, sample_key
from schema.packing import accumulate, read_detail
from schema.store import Store
from schema.wire.exchange import ExportReport

Ints = npt.NDArray[np.int64]

CONTEXT = 256
WINDOW = 32
SPLITS = 5
SAMPLES = "samples.jsonl"
_NARROW = 1 << 16


@dataclass(frozen=True)
class Shape:
    """How a cache is laid out."""

    context: int = CONTEXT
    """Tokens a row."""
    window: int = WINDOW
    """Tokens of an example: Delphi's `example_ctx_len`."""
    splits: int = SPLITS
    """Files that the latents are spread over."""
    pad_token: int = 0
    hookpoint: str | None = None
    """`layers.<n>` unless given."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.context % self.window:
            raise InputError(f"a row of {self.context} tokens holds no whole number of windows of {self.window}")
        if not 1 <= self.splits <= 4096:
            raise InputError(f"--splits {self.splits}: from 1 to 4,096 files")


@dataclass(frozen=True)
class Part:
    """The latents [first, stop) and the spools of their activations."""

    first: int
    stop: int
    locations: Spool
    activations: Spool


def export_delphi(plan: Plan, shape: Shape, model: str) -> ExportReport:
    """Writes the cache.

    Args:
        model: what Delphi loads the tokenizer from.

    Raises:
        Conflict: the place holds something else.
        InputError: the place cannot be written.
    """
    sae = plan.whole.sae
    hookpoint = shape.hookpoint or f"layers.{sae.layer}"
    folder = plan.out / "latents" / hookpoint
    recipe = plan.whole.sources[0].recipe
    claim(plan.out, plan.manifest("delphi", shape=vars(shape), recipe=recipe.as_dict()))
    folder.mkdir(parents=True, exist_ok=True)
    n_examples = None if _finished(folder) else _write(plan, shape, folder, model)
    return ExportReport(
        format="delphi",
        folder=str(plan.out),
        files=sum(1 for _ in folder.iterdir()),
        n_features=len(plan.features),
        n_firing=sum(1 for theirs in read_delphi(folder) if theirs.maximum > 0),
        n_examples=n_examples,
        provenance=provenance(plan.whole.subject, "any"),
    )


def _finished(folder: Path) -> bool:
    """config.json comes last."""
    return (folder / "config.json").exists()


def _write(plan: Plan, shape: Shape, folder: Path, model: str) -> int:
    sae = plan.whole.sae
    edges = np.linspace(0, sae.d_sae, min(shape.splits, sae.d_sae) + 1).astype(int)
    with tempfile.TemporaryDirectory(dir=plan.out, prefix=".spool-") as spool:
        parts = [_part(Path(spool), int(a), int(b)) for a, b in pairwise(edges)]
        tokens = Spool(Path(spool, "tokens"), "int32", shape.context)
        n_written = _fill(plan, shape, parts, tokens, np.isin(np.arange(sae.d_sae), list(plan.features)))
        for part in parts:
            wide = max(part.stop - part.first, tokens.n_rows, shape.context) > _NARROW
            path = folder / f"{part.first}_{part.stop - 1}.safetensors"
            arrays = {
                "locations": (part.locations, "uint32" if wide else "uint16"),
                "activations": (part.activations, "float16"),
                "tokens": (tokens, "int32"),
            }
            write_tensors(path, arrays)
        config = _config(plan, shape, tokens.n_rows, model)
    with whole_file(folder / "config.json") as file:
        file.write(json.dumps(config, indent=4).encode())
    return n_written


def _part(folder: Path, first: int, stop: int) -> Part:
    return Part(
        first, stop, Spool(folder / f"{first}.places", "uint32", 3), Spool(folder / f"{first}.values", "float16", 0)
    )


def _fill(plan: Plan, shape: Shape, parts: Sequence[Part], tokens: Spool, wanted: npt.NDArray[np.bool_]) -> int:
    """Spools every activation of the features wanted, and the tokens, sample by sample; how many activations."""
    n_written, at = 0, 0
    with ExitStack() as open_files:
        listed = open_files.enter_context(lines(plan.out / SAMPLES))
        places = [open_files.enter_context(part.locations.path.open("wb")) for part in parts]
        values = [open_files.enter_context(part.activations.path.open("wb")) for part in parts]
        text = open_files.enter_context(tokens.path.open("wb"))
        for source, chunk in _chunks(plan.whole):
            starts, lengths, at = _spool_tokens(plan, shape, source, chunk, tokens, text, at)
            _list_samples(plan, source, chunk, starts, lengths, listed)
            feature, flat, value = _activations(plan.library.store, plan.whole.sources[source].pair, chunk, starts)
            kept = wanted[feature]
            feature, flat, value = feature[kept], flat[kept], value[kept]
            n_written += len(feature)
            for part, place_file, value_file in zip(parts, places, values, strict=True):
                here = (feature >= part.first) & (feature < part.stop)
                where = np.stack(
                    [flat[here] // shape.context, flat[here] % shape.context, feature[here] - part.first], axis=1
                )
                part.locations.append(place_file, where)
                part.activations.append(value_file, value[here])
            plan.advance(len(chunk))
        tokens.append(text, np.full(-at % shape.context, shape.pad_token))
    return n_written


def _chunks(whole: Whole) -> Iterator[tuple[int, Ints]]:
    """(source, ordinals) of all samples in order, a few hundred at a time."""
    for place, source in enumerate(whole.sources):
        for begin in range(0, source.n_samples, CHUNK):
            yield place, np.arange(begin, min(begin + CHUNK, source.n_samples))


def _spool_tokens(
    plan: Plan, shape: Shape, place: int, chunk: Ints, tokens: Spool, file: IO[bytes], at: int
) -> tuple[Ints, Ints, int]:
    """Lays samples down from token `at` on; where each begins, how long it is, and where the next one begins."""
    run = plan.whole.sources[place].run
    rows = plan.library.store.rows("tokens", [sample_key(run, int(o)) for o in chunk], ["token_ids"])
    ids, offsets = flat_column(rows.column("token_ids"))
    lengths = np.diff(offsets)
    padded = lengths + -lengths % shape.window
    starts = np.concatenate([[0], np.cumsum(padded)])
    laid = np.full(starts[-1], shape.pad_token, np.int32)
    laid[np.arange(len(ids)) + np.repeat(starts[:-1] - offsets[:-1], lengths)] = ids
    tokens.append(file, laid)
    return starts[:-1] + at, lengths, at + int(starts[-1])


def _list_samples(plan: Plan, place: int, chunk: Ints, starts: Ints, lengths: Ints, file: IO[str]) -> None:
    """Where samples lie, each under an id that no other sample of the cache has."""
    source, names = plan.whole.sources[place], plan.whole.subject.names
    rows = plan.library.store.rows("samples", [sample_key(source.dataset_id, int(o)) for o in chunk], ["id"])
    for id_, first, length in zip(rows.column("id").to_pylist(), starts.tolist(), lengths.tolist(), strict=True):
        shown = id_ if len(names) == 1 else f"{names[place]}/{id_}"
        row = {"id": shown, "first": first, "n_tokens": length, "fields": {"dataset": names[place], "sample": id_}}
        file.write(json.dumps(row) + "\n")


def _activations(store: Store, pair: int, chunk: Ints, starts: Ints) -> tuple[Ints, Ints, npt.NDArray[np.float32]]:
    """Feature, place among all tokens, and value of every activation of some samples."""
    rows = store.rows("forward", [sample_key(pair, int(o)) for o in chunk], ["features", "detail"])
    differences, offsets = flat_column(rows.column("features"))
    features = accumulate(differences.astype(np.int64), offsets)
    details = [
        read_detail(bytes(blob.as_py()), features[offsets[i] : offsets[i + 1]])
        for i, blob in enumerate(rows.column("detail"))
    ]
    return (
        np.concatenate([detail.feature for detail in details]),
        np.concatenate([detail.position + start for detail, start in zip(details, starts, strict=True)]),
        np.concatenate([detail.value for detail in details]),
    )


def _config(plan: Plan, shape: Shape, n_rows: int, model: str) -> dict[str, Any]:
    """Delphi's CacheConfig and the model's name."""
    names = [f"{source.name}@{source.version}" for source in plan.whole.sources]
    return {
        "dataset_repo": ",".join(names),
        "dataset_split": "train",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": 1,
        "cache_ctx_len": shape.context,
        "ctx_len": shape.context,
        "n_tokens": n_rows * shape.context,
        "n_splits": shape.splits,
        "model_name": model,
    }
