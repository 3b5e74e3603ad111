"""Doing a sweep: one point after the other is generated, measured and stored; what is stored is never done again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from api.services.library import Library
from api.services.sweeps.book import find_sweep, finish, plan_of
from api.services.sweeps.effects import Value, Written, measure
from api.services.sweeps.measures import longest_repeat, repetition
from api.services.sweeps.plan import Plan, PlannedPoint, choices_of, operations_of, sample_seed, shown_text
from api.services.sweeps.writing import Generated, Stopped, generate
from schema.errors import NotFound
from schema.generation import Choice, Generator
from schema.steer import Sweep, SweepPoint
from schema.wire.sweeps import SweepAnswer, SweepRequest

SCORED = 32
"""Texts scored at a time."""
Tell = Callable[[int, int], None]
"""Points done, tokens generated since."""


def work(
    library: Library, generator: Generator, name: str, stop: threading.Event, tell: Tell = lambda done, tokens: None
) -> SweepAnswer | None:
    """Does the points of a sweep that are not done, and draws its conclusion; None where it was told to stop.

    Raises:
        ScopebaseError: the engine's own, where it cannot go on.
    """
    with library.home.database.reading() as session:
        sweep = find_sweep(session, name)
        done = set(session.scalars(select(SweepPoint.place).where(SweepPoint.sweep_id == sweep.id)))
    request, plan = SweepRequest.model_validate(sweep.request), plan_of(sweep)
    tell(len(done), 0)
    try:
        for place, point in enumerate(plan.points):
            if place not in done:
                tokens = _do(library, generator, sweep, request, plan, place, point, stop)
                done.add(place)
                tell(len(done), tokens)
    except Stopped:
        return None
    return finish(library, name)


def _do(
    library: Library,
    generator: Generator,
    sweep: Sweep,
    request: SweepRequest,
    plan: Plan,
    place: int,
    point: PlannedPoint,
    stop: threading.Event,
) -> int:
    """One point; the number of tokens that it generated."""
    operations, control = operations_of(library, generator.name, request, plan, point)
    asked = choices_of(request, plan.prompts, operations)
    made = generate(generator, [choice for _, _, choice in asked], stop)
    texts = [
        Written(choice.ids, tuple(one.ids), one.text, one.ended)
        for (_, _, choice), one in zip(asked, made, strict=True)
    ]
    effects = measure(library, generator, request.effects, plan.made.mask, texts)
    nll = _score(generator, texts, stop)
    measured = _measured(request, len(plan.prompts), texts, effects, nll)
    measured |= {"control": control, "relative_norm": _relative_norm(made), "example": shown_text(texts[0].text)}
    shown = _texts(request, plan, asked, texts, effects, nll)
    _store(library, sweep, SweepPoint(sweep_id=sweep.id, place=place, measured=measured, texts=shown))
    return sum(len(text.ids) for text in texts)


def _score(generator: Generator, texts: Sequence[Written], stop: threading.Event) -> list[float]:
    """Negative log-likelihood of each text's generated tokens under the unsteered model, in nats; 0 for a text of none."""
    found = [0.0] * len(texts)
    kept = [place for place, text in enumerate(texts) if text.ids]
    for begin in range(0, len(kept), SCORED):
        if stop.is_set():
            raise Stopped
        some = kept[begin : begin + SCORED]
        whole = [(*texts[place].prompt, *texts[place].ids) for place in some]
        for place, logprobs in zip(some, generator.score(whole, [len(texts[p].prompt) for p in some]), strict=True):
            found[place] = -float(logprobs.sum(dtype="float64"))
    return found


def _measured(
    request: SweepRequest,
    n_prompts: int,
    texts: Sequence[Written],
    effects: dict[str, list[Value]],
    nll: Sequence[float],
) -> dict[str, Any]:
    """Numbers a prompt, means or sums over its texts."""

    def of(prompt: int) -> slice:
        return slice(prompt * request.samples, (prompt + 1) * request.samples)

    def means(values: Sequence[Value]) -> list[Value]:
        return [_mean(values[of(prompt)]) for prompt in range(n_prompts)]

    twos = [repetition(text.ids, 2) for text in texts]
    return {
        "effects": {name: means(values) for name, values in effects.items()},
        "repetition": means([repetition(text.ids, 4) for text in texts]),
        "distinct": means([None if share is None else 1 - share for share in twos]),
        "longest_repeat": means([longest_repeat(text.ids) for text in texts]),
        "nll": [sum(nll[of(prompt)]) for prompt in range(n_prompts)],
        "n_tokens": [sum(len(text.ids) for text in texts[of(prompt)]) for prompt in range(n_prompts)],
        "n_texts": len(texts),
        "n_ended": sum(text.ended for text in texts),
    }


def _texts(
    request: SweepRequest,
    plan: Plan,
    asked: Sequence[tuple[int, int, Choice]],
    texts: Sequence[Written],
    effects: dict[str, list[Value]],
    nll: Sequence[float],
) -> list[dict[str, Any]]:
    return [
        {
            "prompt": prompt,
            "sample": sample,
            "seed": sample_seed(request.seed, prompt, sample),
            "text": shown_text(text.text),
            "ids": list(text.ids),
            "ended": text.ended,
            "nll": nll[i],
            "effects": {name: values[i] for name, values in effects.items()},
        }
        for i, ((prompt, sample, _), text) in enumerate(zip(asked, texts, strict=True))
    ]


def _relative_norm(made: Iterable[Generated]) -> float | None:
    """Mean over the texts' operations; None where nothing was touched."""
    return _mean([op.mean_relative_norm for one in made if one.applied for op in one.applied.ops])


def _mean(values: Sequence[Value]) -> Value:
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None


def _store(library: Library, sweep: Sweep, point: SweepPoint) -> None:
    """Raises NotFound for a sweep that was deleted meanwhile; its id may be another's by now."""
    try:
        with library.home.database.writing() as session:
            found = session.get(Sweep, sweep.id)
            if found is None or (found.name, found.created_at) != (sweep.name, sweep.created_at):
                raise NotFound(f"sweep {sweep.name} was deleted while it was at work; nothing more is done of it")
            session.add(point)
    except IntegrityError:
        return  # another process does the same sweep and was there first; both made the same texts
