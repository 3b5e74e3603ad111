"""Labels by an explainer model behind any chat endpoint: asked feature by feature, stored one by one, so that it can stop anywhere.

A failure is reported and never stored. What this model and method explained before is skipped, so the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sqlalchemy import select

from api.services.evidence import proofs
from api.services.labels import asking, book
from api.services.labels.asking import Messages
from api.services.labels.contrast_texts import quiet_texts
from api.services.labels.describer import promoted_by, sources_of
from api.services.library import Library
from schema.errors import WorkFailed
from schema.lab import Label
from schema.lookup import Source, check_index, find_sae, segments_of
from schema.tables import Sae, Segment
from schema.wire.labels import ExplainReport, LabelItem, NewLabel, Unexplained
from schema.wire.questions import SampleProof

MOST_FAILURES = 5
"""Features in a row without an answer: then the endpoint is at fault, not the feature."""
BATCH = 16
"""Features whose samples are read at once."""


class Spent(Exception):
    """The budget does not allow another request."""


class Chat(Protocol):
    """A chat endpoint with a budget."""

    requests: int
    tokens: int

    @property
    def model(self) -> str: ...

    def ask(self, messages: Messages) -> str:
        """The answer's text.

        Raises:
            WorkFailed: no answer, after all retries.
            InputError: the endpoint refuses what no retry would mend, such as the key.
            Spent: the budget is used up.
        """


@dataclass(frozen=True)
class Plan:
    """How features are explained."""

    shown: int = 12
    """Samples shown to the model."""
    scored: int = 0
    """Held-out samples for the detection score, and as many that do not fire; 0 for no score."""
    seed: int = 0
    again: bool = False
    """Explain again what this model and method explained before."""


@dataclass(frozen=True)
class Subject:
    """An SAE and all that was indexed with it."""

    sae: Sae
    sources: list[Source]
    segments: list[list[Segment]]


def explain(
    library: Library,
    sae: str | None,
    features: Sequence[int] | None,
    chat: Chat,
    actor: str,
    plan: Plan | None = None,
    advance: Callable[[int], None] = lambda _n: None,
) -> ExplainReport:
    """Asks for a label of each feature.

    Args:
        features: those wanted; every one that fires unless given.

    Raises:
        NotFound: no such SAE or feature.
        InputError: the endpoint refuses to talk to us.
    """
    plan = plan or Plan()
    subject = _subject(library, sae)
    counts = sum((library.counts(s.pair).samples_any for s in subject.sources), np.zeros(subject.sae.d_sae, np.int64))
    wanted = list(dict.fromkeys(features)) if features is not None else np.flatnonzero(counts).tolist()
    for feature in wanted:
        check_index(subject.sae, feature)
    known = set() if plan.again else _explained(library, subject.sae, chat.model)
    firing = [f for f in wanted if counts[f] and f not in known]
    report = _Report()
    for begin in range(0, len(firing), BATCH):
        found = _samples(library, subject, firing[begin : begin + BATCH], plan.shown + plan.scored)
        if not all(_one(library, subject, f, found[f], chat, actor, plan, report, advance) for f in found):
            break
    skipped = sum(f in known for f in wanted)
    never = sum(not counts[f] and f not in known for f in wanted)
    left = len(firing) - len(report.made) - len(report.failed)
    return ExplainReport(
        data=report.made,
        failed=report.failed,
        skipped=skipped,
        never_firing=never,
        left=left,
        requests=chat.requests,
        tokens=chat.tokens,
        stopped=report.stopped,
    )


class _Report:
    """What came of it so far."""

    def __init__(self) -> None:
        self.made: list[LabelItem] = []
        self.failed: list[Unexplained] = []
        self.in_a_row = 0
        self.stopped: str | None = None


def _one(
    library: Library,
    subject: Subject,
    feature: int,
    samples: list[SampleProof],
    chat: Chat,
    actor: str,
    plan: Plan,
    report: _Report,
    advance: Callable[[int], None],
) -> bool:
    """Explains one feature; whether to go on with the next."""
    try:
        report.made.append(book.create(library, _ask(library, subject, feature, samples, chat, plan), actor))
        report.in_a_row = 0
    except Spent as spent:
        report.stopped = str(spent)
        return False
    except WorkFailed as error:
        report.failed.append(Unexplained(feature=f"{subject.sae.name}/{feature}", reason=str(error)))
        report.in_a_row += 1
        if report.in_a_row == MOST_FAILURES:
            report.stopped = f"{MOST_FAILURES} features in a row got no answer"
            return False
    advance(1)
    return True


def _ask(
    library: Library, subject: Subject, feature: int, samples: list[SampleProof], chat: Chat, plan: Plan
) -> NewLabel:
    """The label of a feature, with its score where one is wanted. Shown and held-out samples alternate by strength."""
    held = samples[1::2][: plan.scored] if plan.scored else []
    shown = [sample for sample in samples if sample not in held][: plan.shown]
    messages = asking.explanation(shown, promoted_by(library.store, subject.sae, [feature]).get(feature, []))
    text = asking.read_label(chat.ask(messages))
    score, method = _score(library, subject, feature, text, held, chat, plan.seed) if held else (None, None)
    return NewLabel(
        feature=f"{subject.sae.name}/{feature}",
        sae_sha256=subject.sae.sha256,
        text=text,
        source="model",
        explainer=chat.model,
        method=asking.METHOD,
        prompt=messages[-1]["content"],
        examples=[{"dataset": s.dataset, "id": s.id, "activation": round(s.activation, 4)} for s in shown],
        score=score,
        score_method=method,
    )


def _score(
    library: Library, subject: Subject, feature: int, label: str, held: list[SampleProof], chat: Chat, seed: int
) -> tuple[float | None, str | None]:
    """Balanced accuracy of detection on held-out samples and as many silent ones of the same datasets."""
    silent = quiet_texts(library, subject.sources, subject.segments, feature, [s.dataset for s in held], seed)
    if not silent:
        return None, None
    texts = [(asking.plain(sample), True) for sample in held] + [(text, False) for text in silent]
    order = np.random.default_rng([seed, feature]).permutation(len(texts))
    mixed = [texts[i] for i in order]
    named = asking.read_numbers(chat.ask(asking.detection(label, [text for text, _ in mixed])), len(mixed))
    right = [(i in named) == fires for i, (_, fires) in enumerate(mixed, start=1)]
    rates = [
        np.mean([r for r, (_, fires) in zip(right, mixed, strict=True) if fires is kind]) for kind in (True, False)
    ]
    method = f"detection, balanced accuracy, {len(held)} firing and {len(silent)} silent samples, seed {seed}"
    return float(np.mean(rates)), method


def _subject(library: Library, sae: str | None) -> Subject:
    with library.home.database.reading() as session:
        found = find_sae(session, sae)
        sources = sources_of(session, found)
        return Subject(found, sources, [segments_of(session, source.pair) for source in sources])


def _explained(library: Library, sae: Sae, model: str) -> set[int]:
    """Features that this model and method explained before."""
    where = (Label.sae_id == sae.id, Label.explainer == model, Label.method == asking.METHOD)
    with library.home.database.reading() as session:
        return set(session.scalars(select(Label.feature).where(*where, Label.deleted_at.is_(None))))


def _samples(library: Library, subject: Subject, features: Sequence[int], n: int) -> dict[int, list[SampleProof]]:
    """The strongest samples of each feature over all datasets, strongest first."""
    found: dict[int, list[SampleProof]] = {feature: [] for feature in features}
    for source, segments in zip(subject.sources, subject.segments, strict=True):
        for feature, each in proofs(library, source, segments, list(features), "any", n).items():
            found[feature] += each
    return {f: sorted(each, key=lambda s: (-s.activation, s.dataset, s.id))[:n] for f, each in found.items()}
