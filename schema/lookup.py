"""Finding by name what a question is about. Only finished runs exist here; `as_of` hides the later ones. Functions on a Session."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from schema.aliases import by_alias
from schema.errors import Conflict, NotFound, not_found
from schema.names import parse_dataset, parse_feature
from schema.recipe import Recipe
from schema.snapshots import NEWEST as NEWEST
from schema.snapshots import newest_snapshot as newest_snapshot
from schema.snapshots import refuse_removed
from schema.tables import Dataset, Run, RunSae, Sae, Segment

SHOWN = 6
"""SAEs named where one must be chosen."""
MOST_KNOWN = 4096


@dataclass(frozen=True)
class Source:
    """One dataset as a question sees it: the pair that holds its counts."""

    pair: int
    run: int
    name: str
    version: int
    dataset_id: int
    n_samples: int
    recipe: Recipe


@dataclass(frozen=True)
class Subject:
    """An SAE and the datasets that a question compares, under one recipe."""

    sae: Sae
    sources: list[Source]
    snapshot: int
    mask: str

    @property
    def names(self) -> list[str]:
        """What answers call the datasets: with the version, or the run, where the name alone would mean two of them."""
        names = [source.name for source in self.sources]
        for shown in (lambda s: f"{s.name}@{s.version}", lambda s: f"{s.name}@run{s.run}"):
            names = [shown(s) if names.count(n) > 1 else n for n, s in zip(names, self.sources, strict=True)]
        return names


_KNOWN: WeakKeyDictionary[Any, OrderedDict[tuple[int, str, str, int], list[Source]]] = WeakKeyDictionary()
"""Engine -> the finished runs of a dataset with an SAE at a snapshot."""


def find_sae(session: Session, name: str | None) -> Sae:
    """The SAE of this id, or of another tool's name for it (`schema.aliases`); without one, the only SAE of the home.

    Raises:
        NotFound: there is none of that name.
        Conflict: several, and none was named.
    """
    if name is None:
        some = list(session.scalars(select(Sae).order_by(Sae.name).limit(SHOWN + 1)))
        if len(some) == 1:
            return some[0]
        names = ", ".join(sae.name for sae in some[:SHOWN])
        raise Conflict(
            f"name an SAE with --sae: {names}{', ...' if len(some) > SHOWN else ''}" if some else "there is no SAE yet"
        )
    sae = session.scalars(select(Sae).where(Sae.name == name)).one_or_none()
    sae = sae or by_alias(session.scalars(select(Sae)), name)
    if sae is None:
        raise not_found("SAE", name, session.scalars(select(Sae.name).order_by(Sae.name)), "scopebase saes")
    return sae


def find_feature(session: Session, text: str) -> tuple[Sae, int]:
    """The SAE and index of a feature's id.

    Raises:
        InputError: it is no id.
        NotFound: there is no such SAE, or it has fewer features.
    """
    name, index = parse_feature(text)
    sae = find_sae(session, name)
    check_index(sae, index)
    return sae, index


def check_index(sae: Sae, index: int) -> None:
    """Raises NotFound for a feature that the SAE does not have."""
    if not 0 <= index < sae.d_sae:
        raise NotFound(f"SAE {sae.name} has features 0 to {sae.d_sae - 1:,}, and none {index:,}")


def find_all_sources(session: Session, sae_name: str | None, as_of: int | None = None) -> tuple[Subject, list[str]]:
    """Every dataset indexed with an SAE under the recipe of its newest run, each in its newest version, and the names left out.

    Raises:
        NotFound: an unknown SAE, or one that no dataset was indexed with.
    """
    sae = find_sae(session, sae_name)
    snapshot = check_snapshot(session, as_of)
    rows = session.execute(
        select(
            Run.finished, RunSae.id, Run.id, Dataset.name, Dataset.version, Dataset.id, Dataset.n_samples, Run.recipe
        )
        .join(Run, RunSae.run_id == Run.id)
        .join(Dataset)
        .where(RunSae.sae_id == sae.id, Run.finished <= snapshot)
        .order_by(Dataset.version, Run.finished)
    ).all()
    refuse_removed(session, snapshot, sae.id)
    if not rows:
        raise NotFound(f"no dataset was indexed with {sae.name} yet ('scopebase index' does it)")
    sources = [
        (finished or 0, Source(pair, run, name, version, dataset, n_samples, Recipe(**recipe)))
        for finished, pair, run, name, version, dataset, n_samples, recipe in rows
    ]
    shared = max(sources, key=lambda each: each[0])[1].recipe.comparable
    found = {source.name: source for _, source in sources if source.recipe.comparable == shared}
    left_out = sorted({source.name for _, source in sources} - set(found))
    return Subject(sae, sorted(found.values(), key=lambda source: source.name), snapshot, shared[0]), left_out


def check_snapshot(session: Session, as_of: int | None) -> int:
    """The snapshot that is asked for, the newest unless one is.

    Raises:
        NotFound: there is no such one.
    """
    newest = newest_snapshot(session)
    if as_of is not None and not 0 < as_of <= newest:
        raise NotFound(
            f"as_of={as_of}: snapshots so far are 1 to {newest}" if newest else f"as_of={as_of}: nothing is indexed yet"
        )
    return as_of or newest


def find_dataset(session: Session, text: str) -> Dataset:
    """The newest version of a dataset that a finished run has read; `NAME@VERSION` asks for one version.

    Raises:
        NotFound: there is none.
    """
    name, version, run = parse_dataset(text)
    where = [Dataset.name == name, Run.finished.is_not(None)]
    if version is not None:
        where.append(Dataset.version == version)
    if run is not None:
        where.append(Run.id == run)
    found = session.scalars(select(Dataset).join(Run).where(*where).order_by(Dataset.version.desc()).limit(1)).first()
    if found is not None:
        return found
    names = list(session.scalars(select(Dataset.name).distinct()))
    if name in names:
        raise NotFound(f"dataset {text!r} is not indexed to the end ('scopebase runs' lists what is)")
    raise not_found("dataset", name, names, "scopebase datasets")


def find_sources(session: Session, sae_name: str | None, datasets: Sequence[str], as_of: int | None = None) -> Subject:
    """What a question over these datasets reads.

    Where a dataset has several finished runs with the SAE, the recipe that all of them share is taken, the newest if there are several.

    Raises:
        NotFound: an unknown SAE or dataset, or one that was not indexed with that SAE.
        Conflict: no recipe is common to all.
    """
    sae = find_sae(session, sae_name)
    snapshot = check_snapshot(session, as_of)
    if as_of is not None:  # what is kept of an older snapshot may have been removed since
        refuse_removed(session, snapshot, sae.id, [parse_dataset(text).name for text in datasets])
    found = [_known_runs(session, sae, text, snapshot) for text in datasets]
    shared = set.intersection(*({source.recipe.comparable for source in each} for each in found))
    if not shared:
        raise Conflict(_unlike([each[-1] for each in found]))
    recipe = next(source.recipe.comparable for source in reversed(found[0]) if source.recipe.comparable in shared)
    return Subject(
        sae, _alike([[s for s in each if s.recipe.comparable == recipe] for each in found]), snapshot, recipe[0]
    )


def _alike(found: list[list[Source]]) -> list[Source]:
    """One run of each dataset, given oldest first: of one template if they have one in common, and the newest of those."""
    texts = set.intersection(*({source.recipe.text for source in each} for each in found))
    return [next((s for s in reversed(each) if s.recipe.text in texts), each[-1]) for each in found]


def _known_runs(session: Session, sae: Sae, text: str, snapshot: int) -> list[Source]:
    """`_runs_of`, kept: what was finished at a snapshot never changes."""
    known = _KNOWN.setdefault(session.get_bind().engine, OrderedDict())
    key = (sae.id, sae.sha256, text, snapshot)
    if key not in known:
        known[key] = _runs_of(session, sae, text, snapshot)
        while len(known) > MOST_KNOWN:
            known.popitem(last=False)
    return known.get(key) or _runs_of(session, sae, text, snapshot)  # another thread may have made room


def _runs_of(session: Session, sae: Sae, text: str, snapshot: int) -> list[Source]:
    """The finished runs of a dataset with an SAE, oldest first."""
    name, version, run = parse_dataset(text)
    where = [Dataset.name == name, RunSae.sae_id == sae.id, Run.finished <= snapshot]
    if run is not None:
        where.append(Run.id == run)
    if version is not None:
        where.append(Dataset.version == version)
    rows = session.execute(
        select(RunSae.id, Run.id, Dataset.name, Dataset.version, Dataset.id, Dataset.n_samples, Run.recipe)
        .join(Run, RunSae.run_id == Run.id)
        .join(Dataset)
        .where(*where)
        .order_by(Run.finished)
    )
    sources = [_source(*row) for row in rows]
    if not sources:
        raise _nothing(session, sae, name, text)
    return sources


def _source(
    pair: int, run: int, name: str, version: int, dataset: int, n_samples: int, recipe: dict[str, Any]
) -> Source:
    return Source(pair, run, name, version, dataset, n_samples, Recipe(**recipe))


def _nothing(session: Session, sae: Sae, name: str, shown: str) -> NotFound:
    """Why a dataset has no counts for an SAE."""
    names = list(session.scalars(select(Dataset.name).distinct()))
    if name not in names:
        return not_found("dataset", name, names, "scopebase datasets")
    unfinished = select(func.count()).select_from(Run).join(Dataset).join(RunSae, RunSae.run_id == Run.id)
    if session.scalar(unfinished.where(Dataset.name == name, RunSae.sae_id == sae.id, Run.finished.is_(None))):
        return NotFound(
            f"dataset {shown!r} is not indexed to the end with {sae.name}; run its 'scopebase index' command again"
        )
    return NotFound(f"dataset {shown!r} was not indexed with {sae.name} ('scopebase runs' lists what was)")


def _unlike(sources: Sequence[Source]) -> str:
    """The sentence that names what keeps runs from being compared."""
    for field in ("mask", "max_tokens", "dtype", "tokenizer_sha256"):
        values = {getattr(source.recipe, field): source.name for source in sources}
        if len(values) > 1:
            parts = " and ".join(f"{name} with {field}={str(value)[:20]}" for value, name in values.items())
            return f"these runs cannot be compared: {parts}; index one of them again like the other"
    return "these runs cannot be compared: their recipes share nothing; index them alike"


def segments_by_pair(session: Session, pairs: Sequence[int]) -> dict[int, list[Segment]]:
    """The same for several pairs."""
    found: dict[int, list[Segment]] = {pair: [] for pair in pairs}
    for segment in session.scalars(select(Segment).where(Segment.run_sae_id.in_(pairs)).order_by(Segment.first)):
        found[segment.run_sae_id].append(segment)
    return found


def segments_of(session: Session, pair: int) -> list[Segment]:
    """The segments of a pair's postings, by sample."""
    return list(session.scalars(select(Segment).where(Segment.run_sae_id == pair).order_by(Segment.first)))
