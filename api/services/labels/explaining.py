"""Labels by an explainer model behind any chat endpoint: asked for several features at once, stored one by one, so that it can stop
anywhere.

A failure is reported and never stored. What this model and method explained before is skipped, so the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import select

from api.services.labels import asking, book
from api.services.labels.alongside import Alongside
from api.services.labels.chat import Chat, Refused, Spent
from api.services.labels.showing import Question, Subject, find_subject, questions
from api.services.library import Library
from schema.errors import WorkFailed
from schema.lab import Label
from schema.lookup import check_index
from schema.tables import Sae
from schema.wire.labels import ExplainReport, LabelItem, NewLabel, Unexplained

MOST_FAILURES = 5
"""Features in a row without an answer: then the endpoint is at fault, not the feature."""
MOST_AT_ONCE = 64


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
    at_once: int = 1
    """Features asked about at the same time."""


@dataclass
class _Report:
    """What came of it so far, by feature."""

    made: dict[int, LabelItem] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    in_a_row: int = 0
    stopped: str | None = None
    refused: Refused | None = None


def explain(
    library: Library,
    sae: str | None,
    features: Sequence[int] | None,
    chat: Chat,
    actor: str,
    plan: Plan | None = None,
    advance: Callable[[int, int], None] = lambda _n, _total: None,
) -> ExplainReport:
    """Asks for a label of each feature.

    Args:
        features: those wanted; every one that fires unless given.
        advance: told how many features were done, and of how many; first (0, n), when everything is checked. Where it raises,
            the work ends and what is answered is stored.

    Raises:
        NotFound: no such SAE or feature.
        Refused: the endpoint will not talk to us.
    """
    plan = plan or Plan()
    subject = find_subject(library, sae)
    library.expect(source.pair for source in subject.sources)
    counts = sum((library.counts(s.pair).samples_any for s in subject.sources), np.zeros(subject.sae.d_sae, np.int64))
    wanted = list(dict.fromkeys(features)) if features is not None else np.flatnonzero(counts).tolist()
    for feature in wanted:
        check_index(subject.sae, feature)
    known = set() if plan.again else _explained(library, subject.sae, chat.model)
    firing = [f for f in wanted if counts[f] and f not in known]
    advance(0, len(firing))
    report = _Report()
    _ask_all(library, subject, firing, chat, actor, plan, report, lambda: advance(1, len(firing)))
    if report.refused is not None:
        raise report.refused
    return ExplainReport(
        data=[report.made[f] for f in firing if f in report.made],
        failed=[
            Unexplained(feature=f"{subject.sae.name}/{f}", reason=report.failed[f])
            for f in firing
            if f in report.failed
        ],
        skipped=sum(f in known for f in wanted),
        never_firing=sum(not counts[f] and f not in known for f in wanted),
        left=len(firing) - len(report.made) - len(report.failed),
        requests=chat.purse.requests,
        tokens=chat.purse.tokens,
        stopped=report.stopped,
    )


def _ask_all(
    library: Library,
    subject: Subject,
    features: Sequence[int],
    chat: Chat,
    actor: str,
    plan: Plan,
    report: _Report,
    advance: Callable[[], None],
) -> None:
    def going_on() -> Iterator[Question]:
        for question in questions(library, subject, features, plan.shown, plan.scored, plan.seed):
            if report.stopped is not None or report.refused is not None:
                return
            yield question

    at_work = Alongside[Question, NewLabel](lambda question: _ask(subject.sae, question, chat, plan), plan.at_once)
    try:
        for question, came in at_work.results(going_on()):
            if _keep(library, question, came, actor, report):
                advance()
    finally:  # who is interrupted loses nothing that is answered
        for question, came in at_work.finished():
            _keep(library, question, came, actor, report)


def _keep(library: Library, question: Question, came: NewLabel | Exception, actor: str, report: _Report) -> bool:
    """Stores a label, or notes why there is none and whether to go on; whether the feature is done with."""
    if isinstance(came, NewLabel):
        report.made[question.feature] = book.create(library, came, actor)
        report.in_a_row = 0
    elif isinstance(came, Spent):
        report.stopped = report.stopped or str(came)
    elif isinstance(came, WorkFailed):
        report.failed[question.feature] = str(came)
        report.in_a_row += 1
        if report.in_a_row == MOST_FAILURES:
            report.stopped = report.stopped or f"{MOST_FAILURES} features in a row got no answer"
    elif isinstance(came, Refused):
        report.refused = report.refused or came
    else:
        raise came
    return question.feature in report.made or question.feature in report.failed


def _ask(sae: Sae, question: Question, chat: Chat, plan: Plan) -> NewLabel:
    """The label of a feature, with its score where one is wanted."""
    with chat.purse.hold(question.n_requests) as hold:
        text = asking.read_label(chat.ask(question.messages, hold))
        named = set()
        if question.mixed:
            detection = asking.detection(text, [text for text, _ in question.mixed])
            named = asking.read_numbers(chat.ask(detection, hold), len(question.mixed))
    score, method = _score(question, named, plan.seed) if question.mixed else (None, None)
    return NewLabel(
        feature=f"{sae.name}/{question.feature}",
        sae_sha256=sae.sha256,
        text=text,
        source="model",
        explainer=chat.model,
        method=asking.METHOD,
        prompt=question.messages[-1]["content"],
        examples=[{"dataset": s.dataset, "id": s.id, "activation": round(s.activation, 4)} for s in question.shown],
        score=score,
        score_method=method,
    )


def _score(question: Question, named: set[int], seed: int) -> tuple[float, str]:
    """Balanced accuracy of detection on held-out samples and as many silent ones of the same datasets."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for i, (_, fires) in enumerate(question.mixed, start=1):
        right[fires].append((i in named) == fires)
    counts = f"{len(right[True])} firing and {len(right[False])} silent samples"
    score = float(np.mean([np.mean(each) for each in right.values()]))
    return score, f"detection, balanced accuracy, {counts}, seed {seed}"


def _explained(library: Library, sae: Sae, model: str) -> set[int]:
    """Features that this model and method explained before."""
    where = (Label.sae_id == sae.id, Label.explainer == model, Label.method == asking.METHOD)
    with library.home.database.reading() as session:
        return set(session.scalars(select(Label.feature).where(*where, Label.deleted_at.is_(None))))
