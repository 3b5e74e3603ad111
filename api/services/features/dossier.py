"""A feature's dossier: everything that the home knows of it, put together from the parts that also answer alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from api.services.cursors import read_cursor, write_cursor
from api.services.evidence import common_tokens
from api.services.features import chosen
from api.services.features.chosen import Ranked, rank
from api.services.features.coactivation import coactivation, draw
from api.services.features.directions import read_direction
from api.services.features.neighbours import cosines, labelled, pairs
from api.services.features.profiles import histogram_of, profiles, token_counts
from api.services.labels.describer import describe
from api.services.library import Library
from api.services.provenance import provenance
from schema.lab import Label
from schema.labels import every_label
from schema.layout import feature_key
from schema.lookup import Subject, find_all_sources, find_feature, find_sources, segments_by_pair
from schema.records import Pool
from schema.wire.features import (
    Dossier,
    DossierSamples,
    FeatureLabel,
    FeatureSamplesAnswer,
    LogitEffect,
    LogitEffects,
    Neighbours,
    ProfilesAnswer,
    SampleChoice,
)

TOP, EACH, RANDOM = 10, 2, 5
"""Samples shown in a dossier: the strongest, of each fifth, random ones."""
NEAREST = 8
READ = 500
"""Samples read for co-activation; `neighbours` reads more."""


def dossier(
    library: Library,
    feature: str,
    pool: Pool = "any",
    datasets: Sequence[str] = (),
    seed: int = 0,
    as_of: int | None = None,
) -> Dossier:
    """All of it.

    Args:
        datasets: the ones to look at; all that were indexed with the SAE unless given.

    Raises:
        NotFound, InputError: an unknown feature or dataset.
        Conflict: see `schema.lookup.find_sources`.
    """
    subject, index, left_out = _subject(library, feature, datasets, as_of)
    ranked = _ranked(library, subject, index, pool)
    found = profiles(library, subject.sources, index, pool)
    labels, best = _labels(library, subject, index)
    norm, near = _neighbours(library, subject, ranked, pool, seed)
    draws = (chosen.top(ranked, TOP), chosen.quantiles(ranked, EACH, seed), chosen.random(ranked, RANDOM, seed))
    top, parts, drawn = chosen.read(library, ranked, pool, *draws)
    n_samples, n_tokens = sum(p.n_samples for p in found), sum(p.n_tokens for p in found)
    tokens = sum(p.tokens for p in found)
    total = sum(p.mean * p.tokens for p in found if p.mean is not None)
    return Dossier(
        feature=f"{subject.sae.name}/{index}",
        sae=subject.sae.name,
        index=index,
        layer=subject.sae.layer,
        label=best,
        labels=labels,
        description=None if labels else describe(library, subject.sae, [index]).get(index),
        n_samples=n_samples,
        n_tokens=n_tokens,
        samples=len(ranked),
        rate=len(ranked) / n_samples if n_samples else None,
        tokens=tokens,
        density=tokens / n_tokens if n_tokens else None,
        mean=total / tokens if tokens else None,
        max=max((p.max for p in found), default=0.0),
        histogram=histogram_of(
            np.sum([token_counts(library, s.pair).histogram(index) for s in subject.sources], axis=0)
        ),
        profiles=found,
        left_out=left_out,
        firing_tokens=common_tokens(top),
        shown=DossierSamples(top=top, quantiles=parts, random=drawn, seed=seed),
        logits=logits(library, subject.sae.id, index),
        norm=norm,
        neighbours=near,
        provenance=provenance(subject, pool),
    )


def feature_profiles(
    library: Library, feature: str, pool: Pool = "any", datasets: Sequence[str] = (), as_of: int | None = None
) -> ProfilesAnswer:
    """How the feature fires in each dataset. Raises as `dossier`."""
    subject, index, left_out = _subject(library, feature, datasets, as_of)
    return ProfilesAnswer(
        feature=f"{subject.sae.name}/{index}",
        data=profiles(library, subject.sources, index, pool),
        left_out=left_out,
        provenance=provenance(subject, pool),
    )


def feature_samples(
    library: Library,
    feature: str,
    by: SampleChoice = "top",
    pool: Pool = "any",
    datasets: Sequence[str] = (),
    limit: int = 50,
    cursor: str | None = None,
    seed: int = 0,
    as_of: int | None = None,
) -> FeatureSamplesAnswer:
    """Samples that fire the feature, page by page; of quantiles there is one page. Raises as `dossier`."""
    offset, snapshot = read_cursor(cursor)
    subject, index, _ = _subject(library, feature, datasets, as_of or snapshot)
    ranked = _ranked(library, subject, index, pool)
    draw = {
        "top": chosen.page(ranked, offset, limit),
        "quantiles": chosen.quantiles(ranked, max(1, limit // chosen.STRATA), seed),
        "random": chosen.random(ranked, limit, seed, offset),
    }[by]
    data = chosen.read(library, ranked, pool, draw)[0]
    more = by != "quantiles" and offset + limit < len(ranked)
    return FeatureSamplesAnswer(
        feature=f"{subject.sae.name}/{index}",
        by=by,
        data=data,
        next_cursor=write_cursor(offset + limit, subject.snapshot) if more else None,
        total=len(ranked),
        seed=seed,
        provenance=provenance(subject, pool),
    )


def logits(library: Library, sae_id: int, feature: int) -> LogitEffects | None:
    """The stored logit effects of a feature, None where none were made."""
    if not library.store.offers("logits"):
        return None
    rows = library.store.rows("logits", [feature_key(sae_id, feature)]).to_pylist()
    if not rows:
        return None

    def effects(end: str) -> list[LogitEffect]:
        columns = (rows[0][f"{end}_{name}"] for name in ("tokens", "ids", "values"))
        return [LogitEffect(token=t, id=i, value=v) for t, i, v in zip(*columns, strict=True)]

    return LogitEffects(positive=effects("top"), negative=effects("bottom"))


def _subject(
    library: Library, feature: str, datasets: Sequence[str], as_of: int | None
) -> tuple[Subject, int, list[str]]:
    with library.home.database.reading() as session:
        sae, index = find_feature(session, feature)
        if datasets:
            return find_sources(session, sae.name, list(dict.fromkeys(datasets)), as_of), index, []
        subject, left_out = find_all_sources(session, sae.name, as_of)
        return subject, index, left_out


def _ranked(library: Library, subject: Subject, index: int, pool: Pool) -> Ranked:
    with library.home.database.reading() as session:
        segments = segments_by_pair(session, [source.pair for source in subject.sources])
    return rank(library, subject.sources, segments, index, pool)


def _labels(library: Library, subject: Subject, index: int) -> tuple[list[FeatureLabel], str | None]:
    """All labels of a feature, the best first, and its text."""
    with library.home.database.reading() as session:
        every = every_label(session, subject.sae.id, index)
    return [_label(label) for label in every], every[0].text if every else None


def _label(label: Label) -> FeatureLabel:
    return FeatureLabel(
        id=label.uid,
        text=label.text,
        author=label.author,
        source=label.source,
        explainer=label.explainer,
        score=label.score,
        score_method=label.score_method,
        votes=label.votes,
        licence=label.licence,
        updated_at=label.updated_at,
    )


def _neighbours(
    library: Library, subject: Subject, ranked: Ranked, pool: Pool, seed: int
) -> tuple[float | None, Neighbours]:
    """The decoder's norm, and the nearest features of each kind in the feature's own SAE."""
    sae, index = subject.sae, ranked.feature
    direction = read_direction(library, sae, index)
    near = cosines(library, sae, direction, NEAREST, index) if direction is not None else []
    drawn = draw(ranked, READ, seed)
    found = coactivation(library, subject.sources, drawn, sae.d_sae, len(ranked), pool)
    together, rivals = (pairs(sae, found, NEAREST, rivals=rivals, without=index) for rivals in (False, True))
    near, together, rivals = labelled(library, sae, near, together, rivals)
    return direction.norm if direction is not None else None, Neighbours(
        cosine=near if direction is not None else None,
        coactivation=together,
        rivals=rivals,
        n_fired=len(ranked),
        n_read=found.n_read,
        n_tested=len(found.features),
        seed=seed,
    )
