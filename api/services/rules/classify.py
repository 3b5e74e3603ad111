"""What a rule says of texts, live or stored, with the tokens that decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from api.services.cursors import read_cursor, write_cursor
from api.services.evidence import Place, firings, read_texts
from api.services.library import Library
from api.services.rules.book import find_rule, rule_item
from api.services.rules.deciding import Above, Reading, classified, says
from api.services.rules.drift import check_drift, mask_warnings, refuse_drift, tokenizer_warnings
from api.services.rules.expressions import Bools, Leaf, decide, leaves
from api.services.rules.ground import Ground, find_ground
from api.services.rules.holding import holding
from api.services.rules.live import DEFAULTS, read_live
from api.services.rules.split import sample_ids
from api.services.slices import select_samples
from schema.errors import NoModel, not_found
from schema.labels import best_labels
from schema.live import LiveModel
from schema.lookup import Source, find_sae, newest_snapshot
from schema.wire.discovery import RuleProvenance
from schema.wire.rules import ClassifyAnswer, ClassifyBody, RuleItem

Ints = npt.NDArray[np.int64]
Labels = Mapping[Leaf, str]


def classify(library: Library, name: str, body: ClassifyBody, live: LiveModel | None = None) -> ClassifyAnswer:
    """Classifies texts through the loaded model, or a page of a dataset's stored samples.

    Raises:
        NotFound: no such rule, dataset or sample.
        Conflict: the rule's SAEs are not what they were.
        NoModel: texts, and no model is loaded.
    """
    with library.home.database.reading() as session:
        rule = find_rule(session, name, body.version)
        drifted = check_drift(session, rule)
        refuse_drift(rule, drifted)
        item = rule_item(rule)
    warnings = [each.sentence for each in drifted]
    if body.texts is None:
        return _stored(library, item, body, warnings)
    if live is None:
        raise NoModel(
            "no model is loaded here, so texts cannot be read; start the service with 'scopebase serve --model M'"
        )
    return _live(library, item, body.texts, body.only, live, warnings)


def _live(
    library: Library, item: RuleItem, texts: Sequence[str], only: bool | None, live: LiveModel, warnings: list[str]
) -> ClassifyAnswer:
    found, labels = leaves(item.expression), _labels(library, item)
    readings = read_live(live, texts, item)
    positive = [says(item.expression, found, reading) for reading in readings]
    data = [
        classified(reading, says_so, found, labels)
        for reading, says_so in zip(readings, positive, strict=True)
        if only is None or says_so == only
    ]
    with library.home.database.reading() as session:
        snapshot = newest_snapshot(session)
    saes = {name: bound.sha256 for name, bound in item.saes.items()}
    first = next(iter(saes))
    return ClassifyAnswer(
        rule=item.name,
        version=item.version,
        data=data,
        total=len(data),
        n_positive=sum(positive),
        n=len(positive),
        warnings=[*warnings, *tokenizer_warnings(item, {f"model {live.name}": live.tokenizer_sha256})],
        provenance=RuleProvenance(
            sae=first,
            sae_sha256=saes[first],
            saes=saes,
            runs={},
            pool=item.pool,
            mask=(DEFAULTS | item.provenance)["mask"],
            snapshot=snapshot,
        ),
    )


def _stored(library: Library, item: RuleItem, body: ClassifyBody, warnings: list[str]) -> ClassifyAnswer:
    offset, snapshot = read_cursor(body.cursor)
    assert body.dataset is not None
    with library.home.database.reading() as session:
        ground = find_ground(session, [*item.saes], [body.dataset], body.as_of or snapshot)
    source, found, labels = ground.datasets[0], leaves(item.expression), _labels(library, item)
    holds = holding(library, ground, [*found], item.pool)[0]
    positive = decide(item.expression, holds)
    asked = _asked(library, source, body)
    matching = asked if body.only is None else asked[positive[asked] == body.only]
    page = [int(ordinal) for ordinal in matching[offset : offset + body.limit]]
    readings = _readings(library, ground, item, page, holds)
    more = offset + body.limit < len(matching)
    return ClassifyAnswer(
        rule=item.name,
        version=item.version,
        data=[classified(readings[ordinal], bool(positive[ordinal]), found, labels) for ordinal in page],
        next_cursor=write_cursor(offset + body.limit, ground.snapshot) if more else None,
        total=len(matching),
        n_positive=int(positive[asked].sum()),
        n=len(asked),
        warnings=[
            *warnings,
            *tokenizer_warnings(item, {source.name: source.recipe.tokenizer_sha256}),
            *mask_warnings(item, ground.mask),
        ],
        provenance=ground.provenance(item.pool),
    )


def _asked(library: Library, source: Source, body: ClassifyBody) -> Ints:
    """Ordinals of the samples that a request names, in its order."""
    if body.ids is None:
        return select_samples(library, source, body.where)
    wanted = dict.fromkeys(body.ids)
    place: dict[str, int] = {}
    known: list[str] = []
    for ordinal, id_ in sample_ids(library, source):
        if id_ in wanted:
            place[id_] = ordinal
        elif len(known) < 10_000:  # for the hint
            known.append(id_)
    for id_ in wanted:
        if id_ not in place:
            raise not_found(
                f"sample of {source.name}", id_, known, f"scopebase rule classify NAME --dataset {source.name}"
            )
    return np.array([place[id_] for id_ in wanted], np.int64)


def _readings(
    library: Library, ground: Ground, item: RuleItem, page: Sequence[int], holds: Mapping[Leaf, Bools]
) -> dict[int, Reading]:
    """The samples of a page with their evidence, in reads that do not grow with the number of features."""
    above: dict[int, dict[Leaf, Above]] = {ordinal: {} for ordinal in page}
    for layer in ground.layers:
        source = layer.sources[0]
        own = [leaf for leaf in leaves(item.expression) if leaf.sae == layer.sae.name]
        wanted = {
            leaf.index: [Place(source, o) for o in page if any(holds[x][o] for x in own if x.index == leaf.index)]
            for leaf in own
        }
        fired = firings(library.store, wanted, item.pool)
        for leaf in own:
            for firing in fired[leaf.index]:
                over = firing.value > leaf.above
                if over.any():
                    above[firing.place.ordinal][leaf] = Above(firing.position[over], firing.value[over])
    source = ground.datasets[0]
    texts = read_texts(library.store, [Place(source, ordinal) for ordinal in page]) if page else {}
    readings = {}
    for ordinal in page:
        sample = texts[Place(source, ordinal).key]
        readings[ordinal] = Reading(source.name, sample.id, sample.text, sample.starts, sample.ends, above[ordinal])
    return readings


def _labels(library: Library, item: RuleItem) -> dict[Leaf, str]:
    texts: dict[Leaf, str] = {}
    with library.home.database.reading() as session:
        for name in item.saes:
            own = [leaf for leaf in leaves(item.expression) if leaf.sae == name]
            labels = best_labels(session, find_sae(session, name).id, [leaf.index for leaf in own])
            texts |= {leaf: labels[leaf.index].text for leaf in own if leaf.index in labels}
    return texts
