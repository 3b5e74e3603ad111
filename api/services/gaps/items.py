"""The features of a coverage gap as answers show them: rates, tests, proving samples and synthesis prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.evidence import common_tokens
from api.services.gaps.standing import STATES, Standing
from api.services.gaps.synthesis import synthesis_prompt
from api.services.library import Library
from api.services.query.comparison import false_discovery_rate
from api.services.questions.grounds import Ground, shown_on
from api.services.statistics import fisher_exact, rate_difference_interval, wilson
from schema.lab import Label
from schema.labels import best_labels, shown_label
from schema.lookup import Source, find_all_sources
from schema.wire.gaps import Change, CoverageGapQuestion, GapItem
from schema.wire.questions import SampleProof

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tested:
    """The target dataset against the others; arrays are d_sae long."""

    difference: Floats
    low: Floats
    high: Floats
    q: Floats
    n_tested: int


@dataclass(frozen=True)
class Gap:
    """A whole gap, ranked, before any of its features is looked up."""

    question: CoverageGapQuestion
    now: Standing
    before: Standing | None
    """At `since`."""
    tested: Tested | None
    weight: Floats
    """(d_sae,) now, or before for what is no target any more; nan for what never was."""
    order: npt.NDArray[np.int64]
    """Every feature of the SAE, best first; a cursor is a place in it."""
    kept: npt.NDArray[np.int64]
    """The places of the features of the gap, or of those that changed."""


def hold_against(library: Library, standing: Standing) -> Tested | None:
    """Every feature that fires in the target dataset or in the others; None where the target is no dataset."""
    target = standing.target
    if target is None or not standing.n_samples:
        return None

    def compute() -> Tested:
        x, y, n_x, n_y = target.fires, standing.count, target.n_samples, standing.n_samples
        tested = x + y > 0
        p = np.ones(len(x))
        p[tested] = fisher_exact(x[tested], n_x, y[tested], n_y)
        low, high = rate_difference_interval(x, n_x, y, n_y)
        return Tested(x / n_x - y / n_y, low, high, false_discovery_rate(p, tested), int(tested.sum()))

    return library.remembered(("gap", target.key, tuple(c.key for c in standing.datasets)), compute)


def proving_sources(library: Library, question: CoverageGapQuestion, standing: Standing) -> list[Source]:
    """The datasets whose samples show features: the target, or else every dataset that can be compared."""
    if standing.target is not None:
        return [standing.target.source]
    if standing.subject is None or not question.include:
        return []
    with library.home.database.reading() as session:
        everything, _ = find_all_sources(session, standing.sae.name, standing.subject.snapshot)
    comparable = standing.datasets[0].source.recipe.comparable
    found = {s.pair: s for s in everything.sources if s.recipe.comparable == comparable}
    return list((found | {c.source.pair: c.source for c in standing.datasets}).values())


def items(library: Library, gap: Gap, features: Sequence[int]) -> list[GapItem]:
    """These features, in this order."""
    if not features:
        return []
    now = gap.now
    shown = _proofs(library, gap.question, now, features) if gap.question.include else {}
    with library.home.database.reading() as session:
        labels = best_labels(session, now.sae.id, features)
    if not now.n_samples:
        return [_item(gap, f, labels.get(f), shown.get(f, []), None) for f in features]
    low, high = wilson(now.count[list(features)], now.n_samples)
    ends = zip(low.tolist(), high.tolist(), strict=True)
    return [_item(gap, f, labels.get(f), shown.get(f, []), end) for f, end in zip(features, ends, strict=True)]


def _item(
    gap: Gap, feature: int, label: Label | None, samples: list[SampleProof], interval: tuple[float, float] | None
) -> GapItem:
    question, now, before, tested, target = gap.question, gap.now, gap.before, gap.tested, gap.now.target
    tokens = common_tokens(samples)
    wants_prompt = "synthesis_prompt" in question.include
    return GapItem(
        feature=f"{now.sae.name}/{feature}",
        index=feature,
        **shown_label(label),
        state=STATES[now.state[feature]],
        before=None if before is None else STATES[before.state[feature]],
        change=None if before is None else _change(now, before, feature),
        count=int(now.count[feature]),
        rate=int(now.count[feature]) / now.n_samples if now.n_samples else None,
        interval=interval,
        target_count=None if target is None else int(target.fires[feature]),
        target_rate=None if target is None else int(target.fires[feature]) / target.n_samples,
        rate_difference=None if tested is None else float(tested.difference[feature]),
        difference_interval=None if tested is None else (float(tested.low[feature]), float(tested.high[feature])),
        q_value=None if tested is None else float(tested.q[feature]),
        weight=float(gap.weight[feature]),
        firing_tokens=tokens,
        samples=samples if "samples" in question.include else [],
        synthesis_prompt=synthesis_prompt(_property(label), samples, tokens) if wants_prompt else None,
    )


def _property(label: Label | None) -> str | None:
    """What a text must show. A description of tokens is not a property: the samples and the tokens say it better."""
    return None if label is None or label.source == "describer" else label.text


def _change(now: Standing, before: Standing, feature: int) -> Change:
    if before.in_gap[feature]:
        return "moved" if now.in_gap[feature] else "closed"
    return "opened"


def _proofs(
    library: Library, question: CoverageGapQuestion, now: Standing, features: Sequence[int]
) -> dict[int, list[SampleProof]]:
    """Each feature's samples, from the target or from the dataset that fires it most, the curator's own last."""
    sources = proving_sources(library, question, now)
    if not sources:
        return {}
    own = {column.source.pair for column in now.datasets}
    within = None if now.target is None else now.target.ordinals
    return shown_on(
        library,
        [Ground(s, _rates(library, s, question, features), s.pair not in own, within) for s in sources],
        features,
        question.pool,
        question.samples,
    )


def _rates(library: Library, source: Source, question: CoverageGapQuestion, features: Sequence[int]) -> Floats:
    counts = library.counts(source.pair)
    return np.asarray(counts.samples(question.pool)[list(features)] / counts.n_samples)
