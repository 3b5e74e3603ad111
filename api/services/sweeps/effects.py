"""The effects of a sweep, measured text by text: on characters, on token ids, or read back through the unsteered model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from api.services.library import Library
from api.services.rules.book import find_rule, rule_item
from api.services.rules.expressions import Leaf, decide, leaves
from api.services.sweeps import measures
from schema.errors import Conflict
from schema.generation import Generator
from schema.live import LiveText
from schema.lookup import check_index, find_feature, find_sae
from schema.names import parse_versioned
from schema.records import Pool
from schema.wire.effects import (
    Effect,
    Endless,
    FeatureActivation,
    LongestRepeat,
    Repetition,
    RuleShare,
    ScriptShare,
    Words,
)
from schema.wire.expressions import Expression

AT_ONCE = 32
"""Texts read back at a time."""
Value = float | None


@dataclass(frozen=True)
class Written:
    """One text that was generated."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    ended: bool


def name_of(effect: Effect) -> str:
    """What an effect is called in answers and plots."""
    if isinstance(effect, ScriptShare):
        return f"script {effect.script}"
    if isinstance(effect, RuleShare):
        return f"rule {effect.rule}" if effect.rule else "expression"
    if isinstance(effect, FeatureActivation):
        return f"{effect.of} of {effect.feature}" if effect.of != "fires" else f"{effect.feature} fires"
    if isinstance(effect, Words):
        shown = ", ".join(effect.words[:3])
        return f"words {shown}{', …' if len(effect.words) > 3 else ''}"
    return f"repetition {effect.n}" if isinstance(effect, Repetition) else effect.measure.replace("_", " ")


def names_of(effects: Sequence[Effect]) -> list[str]:
    """Each once: effects of one name are numbered."""
    names = [name_of(effect) for effect in effects]
    return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, start=1)]


def saes_of(library: Library, model: str, effects: Sequence[Effect]) -> list[str]:
    """The SAEs that have to be read; every name and script is looked up.

    Raises:
        NotFound: a feature, SAE or rule that is not there.
        Conflict: one of another model.
        InputError: no such script.
    """
    found: dict[str, None] = {}
    with library.home.database.reading() as session:
        for effect in effects:
            if isinstance(effect, ScriptShare):
                measures.script_pattern(effect.script)
            elif isinstance(effect, FeatureActivation):
                found[find_feature(session, effect.feature)[0].name] = None
            elif isinstance(effect, RuleShare):
                for leaf in leaves(_expression(library, effect)[0]):
                    sae = find_sae(session, leaf.sae)
                    check_index(sae, leaf.index)
                    found[sae.name] = None
        for name in found:
            owner = find_sae(session, name).model.name
            if owner != model:
                raise Conflict(f"effects: {name} is an SAE of model {owner}, but {model} is loaded")
    return list(found)


def measure(
    library: Library, generator: Generator, effects: Sequence[Effect], mask: str, texts: Sequence[Written]
) -> dict[str, list[Value]]:
    """Name of an effect -> its value for each text; None where a text has none."""
    names = names_of(effects)
    found: dict[str, list[Value]] = {name: [] for name in names}
    saes = saes_of(library, generator.name, effects)
    rules = {name: _expression(library, e) for name, e in zip(names, effects, strict=True) if isinstance(e, RuleShare)}
    features = _features(library, dict(zip(names, effects, strict=True)))
    for begin in range(0, len(texts), AT_ONCE):
        some = texts[begin : begin + AT_ONCE]
        read = _read(generator, saes, mask, some)
        for name, effect in zip(names, effects, strict=True):
            if isinstance(effect, RuleShare):
                found[name] += _hold(*rules[name], read)
            elif isinstance(effect, FeatureActivation):
                found[name] += [None if r is None else _activation(effect, *features[name], *r) for r in read]
            else:
                found[name] += [_plain(effect, text) for text in some]
    return found


def _plain(effect: ScriptShare | Repetition | LongestRepeat | Endless | Words, text: Written) -> Value:
    if isinstance(effect, ScriptShare):
        return measures.script_share(text.text, effect.script)
    if isinstance(effect, Words):
        return float(measures.has_words(text.text, effect.words))
    if isinstance(effect, Repetition):
        return measures.repetition(text.ids, effect.n)
    if isinstance(effect, LongestRepeat):
        return measures.longest_repeat(text.ids)
    return float(measures.is_endless(text.ids, text.ended, effect.tail, effect.times, effect.period))


Read = tuple[LiveText, int]
"""A text with its prompt, and the place of the first generated token."""


def _read(generator: Generator, saes: Sequence[str], mask: str, texts: Sequence[Written]) -> list[Read | None]:
    """None for a text of no token: nothing was generated that could be read."""
    kept = [text for text in texts if text.ids]
    if not saes or not kept:
        return [None] * len(texts)
    longest = max(len(text.prompt) + len(text.ids) for text in kept)
    read = iter(generator.read([(*t.prompt, *t.ids) for t in kept], saes, mask=mask, max_tokens=longest))
    return [(next(read), len(text.prompt)) if text.ids else None for text in texts]


def _values(read: LiveText, first: int, sae: str, index: int) -> np.ndarray:
    """A feature's activation at each generated token that counts, 0 where it does not fire."""
    fired, values = read.fired[sae], np.zeros(len(read.ids))
    own = fired.feature == index
    values[fired.position[own]] = fired.value[own]
    counted = read.counts.copy()
    counted[:first] = False
    return np.asarray(values[counted])


def _features(library: Library, effects: Mapping[str, Effect]) -> dict[str, tuple[str, int]]:
    """Name of an effect -> the SAE and index that it reads."""
    with library.home.database.reading() as session:
        found = {
            name: find_feature(session, e.feature) for name, e in effects.items() if isinstance(e, FeatureActivation)
        }
        return {name: (sae.name, index) for name, (sae, index) in found.items()}


def _activation(effect: FeatureActivation, sae: str, index: int, read: LiveText, first: int) -> Value:
    values = _values(read, first, sae, index)
    if effect.of == "fires":
        return float(bool((values > 0).any()))
    if not len(values):
        return None
    return float(values.mean() if effect.of == "mean" else values.max())


def _expression(library: Library, effect: RuleShare) -> tuple[Expression, Pool]:
    if effect.rule is None:
        assert effect.expression is not None
        return effect.expression, "any"
    with library.home.database.reading() as session:
        rule = rule_item(find_rule(session, *parse_versioned("rule", effect.rule)))
    return rule.expression, rule.pool


def _hold(expression: Expression, pool: Pool, read: Sequence[Read | None]) -> list[Value]:
    """1 where an expression holds of the generated tokens, else 0; a text of no token fires nothing."""
    holds = {
        leaf: np.array([r is not None and _above(*r, leaf, pool) for r in read], np.bool_)
        for leaf in leaves(expression)
    }
    return [float(held) for held in decide(expression, holds)]


def _above(read: LiveText, first: int, leaf: Leaf, pool: Pool) -> bool:
    values = _values(read, first, leaf.sae, leaf.index)
    if pool == "last":
        values = values[-1:]
    return bool((values > leaf.above).any())
