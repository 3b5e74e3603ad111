"""Both stores held against each other: what SQL lists must be in the store, once, and nothing else.

Reads keys and files, and with `deep` every forward row. Memory holds a count for each owner of rows, whatever their number.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import select

from schema.errors import Conflict, ScopebaseError
from schema.home import Home
from schema.lab import Evaluation
from schema.layout import FEATURE_BITS, SAMPLE_BITS, feature_key, flat_column, sample_key
from schema.packing import accumulate
from schema.publish import storage_faults
from schema.removals import doomed_run, remove, trim
from schema.steer import SteeringVector
from schema.tables import Dataset, Run, RunSae, Sae, Segment, Shard
from schema.upkeep import remove_rows

BATCH = 1 << 16
OWNER_BITS = {
    **dict.fromkeys(("samples", "tokens", "forward", "parts", "profiles"), SAMPLE_BITS),
    **dict.fromkeys(("postings", "logits", "directions"), FEATURE_BITS),
    "scores": 0,
}
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    where: str
    problem: str
    mend: str
    mended: bool = False


@dataclass
class Verdict:
    """What was looked at, and what was found."""

    counts: dict[str, int] = field(default_factory=dict)
    """What -> how many of it were looked at."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return all(finding.mended for finding in self.findings)


@dataclass(frozen=True)
class Listed:
    """What SQL says should be there."""

    datasets: dict[int, Dataset]
    runs: dict[int, Run]
    pairs: dict[int, RunSae]
    segments: dict[int, Segment]
    saes: dict[int, Sae]
    evaluations: set[int]
    done: set[tuple[str, int]]
    """(`samples`, `directions` or `logits`; dataset or SAE) whose shard is committed."""

    def owners(self, table: str) -> set[int]:
        """Who may have rows in a table."""
        kind = _kind(table)
        by_table: dict[str, Any] = {"samples": self.datasets, "tokens": self.runs, "postings": self.segments}
        by_table |= dict.fromkeys(("forward", "parts", "profiles"), self.pairs)
        by_table |= {"logits": self.saes, "directions": self.saes, "scores": self.evaluations}
        return set(by_table[kind])


def verify(home: Home, *, mend: bool = False, deep: bool = False, tell: Tell = lambda _what: None) -> Verdict:
    """Looks at everything, and mends what can be.

    Args:
        mend: removes rows that nobody owns, and finished runs that lack some, to be indexed again by the same command.
        deep: also counts every profile and every posting anew from the forward rows.
        tell: told what is being looked at.

    Raises:
        Conflict: to be mended while something is being indexed.
    """
    if mend and not home.ledger.idle():
        raise Conflict("something is being indexed; mend when it is done, or look without --mend")
    verdict = Verdict()
    trim(home)
    home.store.refresh()
    listed = _listed(home)
    rows: dict[str, Counter[int]] = {}
    for table in home.tables():
        tell(f"reading {table}")
        files = list(_lost_files(home, table, verdict))
        verdict.findings += files
        if not files:
            rows[table] = _owners(home, table)
            verdict.counts[f"rows of {table}"] = rows[table].total()
    listed_now = _listed(home)  # whoever registered something while its table was read is no orphan
    for table, owned in rows.items():
        nobodys = sorted(set(owned) - listed_now.owners(table) - listed.owners(table))
        verdict.findings += [_orphan(home, table, owner, mend) for owner in nobodys]
    verdict.findings += [*_datasets(listed, rows), *_saes(listed, rows), *_vectors(home, verdict)]
    for run in listed.runs.values():
        if run.finished is None:
            continue
        tell(f"run {run.id}, {run.dataset.name}")
        verdict.counts["finished runs"] = verdict.counts.get("finished runs", 0) + 1
        problem = _lacking(listed, run, rows) or (deep and _differing(home, listed, run)) or None
        if problem:
            verdict.findings.append(_broken(home, run, problem, mend))
    return verdict


def _listed(home: Home) -> Listed:
    with home.database.reading() as session:
        done = select(Shard.kind, Shard.dataset_id, Shard.sae_id).where(Shard.state == "committed")
        whole = done.where(Shard.kind.in_(("samples", "directions", "logits")))
        return Listed(
            datasets={dataset.id: dataset for dataset in session.scalars(select(Dataset))},
            runs={run.id: run for run in session.scalars(select(Run).order_by(Run.id))},
            pairs={pair.id: pair for pair in session.scalars(select(RunSae))},
            segments={segment.id: segment for segment in session.scalars(select(Segment).order_by(Segment.first))},
            saes={sae.id: sae for sae in session.scalars(select(Sae))},
            evaluations=set(session.scalars(select(Evaluation.id))),
            done={(kind, dataset or sae or 0) for kind, dataset, sae in session.execute(whole)},
        )


def _kind(table: str) -> str:
    return "directions" if table.startswith("directions_") else table


def _lost_files(home: Home, table: str, verdict: Verdict) -> Iterator[Finding]:
    """Data files that the newest version names and that are not there, or cut off."""
    mend = "restore the store from a backup, or remove what it belongs to and index it again"
    try:
        fragments = home.store.latest(table).get_fragments()
        sizes = home.store.sizes(table)
    except (OSError, ValueError, RuntimeError) as error:
        yield Finding(table, f"cannot be opened: {str(error).splitlines()[0][:200]}", mend)
        return
    for file in (file for fragment in fragments for file in fragment.metadata.files):
        size = sizes.get(f"data/{file.path}")
        verdict.counts["data files"] = verdict.counts.get("data files", 0) + 1
        if size is None:
            yield Finding(f"{table}, {file.path}", "the file is not there", mend)
        elif file.file_size_bytes and size != file.file_size_bytes:
            yield Finding(f"{table}, {file.path}", f"has {size:,} bytes and not {file.file_size_bytes:,}", mend)


def _owners(home: Home, table: str) -> Counter[int]:
    """Owner -> how many rows of a table are its."""
    counts: Counter[int] = Counter()
    shift = OWNER_BITS[_kind(table)]
    for batch in home.store.latest(table).scanner(columns=["key"], filter="key >= 0", batch_size=BATCH).to_batches():
        owners, n = np.unique(batch.column("key").to_numpy() >> shift, return_counts=True)
        counts.update(dict(zip(owners.tolist(), n.tolist(), strict=True)))
    return counts


def _orphan(home: Home, table: str, owner: int, mend: bool) -> Finding:
    """Rows that nobody owns."""
    shift = OWNER_BITS[_kind(table)]
    if mend:
        remove_rows(home.store, table, owner << shift, (owner + 1) << shift)
    problem = "rows that the database does not list"
    return Finding(f"{table}, owner {owner}", problem, "they are removed (--mend)", mended=mend)


def _datasets(listed: Listed, rows: dict[str, Counter[int]]) -> Iterator[Finding]:
    for dataset in listed.datasets.values():
        n = rows["samples"][dataset.id] if "samples" in rows else dataset.n_samples
        if ("samples", dataset.id) in listed.done and n != dataset.n_samples:
            name = f"{dataset.name}@{dataset.version}"
            mend = f"'scopebase delete dataset {name}', then index it again"
            yield Finding(f"dataset {name}", f"{n:,} rows and not {dataset.n_samples:,}", mend)


def _saes(listed: Listed, rows: dict[str, Counter[int]]) -> Iterator[Finding]:
    for sae in listed.saes.values():
        for kind, table in (("directions", f"directions_{sae.d_model}"), ("logits", "logits")):
            n = rows[table][sae.id] if table in rows else sae.d_sae
            if (kind, sae.id) in listed.done and n != sae.d_sae:
                mend = f"'scopebase delete sae {sae.name}', then index it again"
                yield Finding(f"SAE {sae.name}", f"{n:,} rows of {kind} and not {sae.d_sae:,}", mend)


def _vectors(home: Home, verdict: Verdict) -> Iterator[Finding]:
    """Saved steering vectors whose bytes are not those that were saved."""
    with home.database.reading() as session:
        for row in session.scalars(select(SteeringVector).order_by(SteeringVector.id).execution_options(yield_per=100)):
            verdict.counts["saved vectors"] = verdict.counts.get("saved vectors", 0) + 1
            if hashlib.sha256(row.data).hexdigest() != row.sha256 or len(row.data) != 4 * len(row.layers) * row.d_model:
                mend = "restore the database from a backup, or save it again under its name"
                yield Finding(
                    f"vector {row.name}@{row.version}", "its bytes have another hash than when it was saved", mend
                )


def _lacking(listed: Listed, run: Run, rows: dict[str, Counter[int]]) -> str | None:
    """What a finished run has too little or too much of."""
    n = run.dataset.n_samples

    def wrong(table: str, owner: int, wanted: int) -> str | None:
        found = rows[table][owner] if table in rows else wanted
        return f"{found:,} rows of {table} and not {wanted:,}" if found != wanted else None

    problems = [wrong("tokens", run.id, n)]
    for pair in run.pairs:
        segments = [segment for segment in listed.segments.values() if segment.run_sae_id == pair.id]
        edges = [(segment.first, segment.stop) for segment in segments]
        if [a for a, _ in edges] != [0, *(b for _, b in edges[:-1])][: len(edges)] or (
            edges[-1][1] if edges else 0
        ) != n:
            problems.append(f"segments {edges} that do not cover its {n:,} samples")
        problems += [wrong("forward", pair.id, n), wrong("profiles", pair.id, 1)]
        problems += [wrong("postings", segment.id, pair.sae.d_sae) for segment in segments]
    return next((problem for problem in problems if problem), None)


def _differing(home: Home, listed: Listed, run: Run) -> str | None:
    """Where profile or postings say something else than the forward rows."""
    for pair in run.pairs:
        counts = {pool: np.zeros(pair.sae.d_sae, np.int64) for pool in ("any", "last")}
        names = {"any": "features", "last": "last_features"}
        for batch in home.store.span("forward", sample_key(pair.id), sample_key(pair.id + 1), [*names.values()]):
            for pool, name in names.items():
                differing, offsets = flat_column(batch.column(name))
                np.add.at(counts[pool], accumulate(differing.astype(np.int64), offsets), 1)
        profile = home.store.rows("profiles", [sample_key(pair.id)], ["samples_any", "samples_last"])
        for pool, counted in counts.items():
            said = flat_column(profile.column(f"samples_{pool}"))[0]
            if not np.array_equal(said, counted):
                return f"a profile of {pair.sae.name} that counts {_where(said, counted)} under pool {pool}"
            posted = _posted(home, listed, pair, "samples" if pool == "any" else "last_samples")
            if not np.array_equal(posted, counted):
                return f"postings of {pair.sae.name} that list {_where(posted, counted)} under pool {pool}"
    return None


def _posted(home: Home, listed: Listed, pair: RunSae, column: str) -> npt.NDArray[np.int64]:
    """(d_sae,) how many samples the postings list for each feature."""
    counts = np.zeros(pair.sae.d_sae, np.int64)
    for segment in listed.segments.values():
        if segment.run_sae_id == pair.id:
            for batch in home.store.span(
                "postings", feature_key(segment.id), feature_key(segment.id + 1), ["key", column]
            ):
                lengths = np.diff(flat_column(batch.column(column))[1])
                counts[batch.column("key").to_numpy() - feature_key(segment.id)] += lengths
    return counts


def _where(said: npt.NDArray[Any], counted: npt.NDArray[np.int64]) -> str:
    """The first feature about which two counts differ."""
    feature = int(np.flatnonzero(said != counted)[0])
    return f"{int(said[feature]):,} samples for feature {feature} where {int(counted[feature]):,} fire it"


def _broken(home: Home, run: Run, problem: str, mend: bool) -> Finding:
    """A finished run that is not whole cannot be trusted in any part: it is taken out, so that indexing makes it anew."""
    where = f"run {run.id}, {run.dataset.name}@{run.dataset.version}"
    told = "it is removed (--mend); the same 'scopebase index' command makes it anew"
    if not mend:
        return Finding(where, problem, told)
    try:
        with storage_faults(home.store):
            with home.database.writing(alone=True) as session:
                remove(session, doomed_run(session, session.get_one(Run, run.id)), "verify")
            trim(home)
    except ScopebaseError as error:
        return Finding(where, problem, f"not mended: {error}")
    return Finding(where, problem, told, mended=True)
