"""Taking label packs in.

The whole pack is checked before anything is written. Then whole batches are written, each in one transaction; whoever is
interrupted imports the same pack again: labels are known by their ids, and what is there already is left alone. A label that is
here with other words is a conflict, settled by the policy and reported (`api.services.labels.merge`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sqlalchemy import select

from api.services.labels.book import check_content, check_tensors
from api.services.labels.heard import said_of
from api.services.labels.merge import Counts, Incoming, merge
from api.services.labels.packs import Line, read_pack
from api.services.labels.search_index import catch_up, texts
from api.services.library import Library
from schema.audit import audit
from schema.errors import InputError, NotFound, ScopebaseError
from schema.lookup import check_index, find_sae
from schema.names import parse_feature
from schema.tables import Sae, now
from schema.wire.labels import ImportReport, Policy, Stop
from schema.wire.packs import PackLabel

BATCH = 5_000


def import_labels(
    library: Library,
    pack: Path,
    actor: str,
    sae: str | None = None,
    policy: Policy = "skip",
    dry_run: bool = False,
    name: str | None = None,
    advance: Callable[[int, int], None] = lambda _n, _total: None,
) -> ImportReport:
    """Takes a pack in: a file, or a directory of them.

    Args:
        sae: what rows speak of that name no tensors; those that do must name its.
        policy: what happens to a label that is here with other words: `skip` keeps ours, `update` takes the pack's if it is the later
            version, `duplicate` keeps both.
        advance: told how many labels were done, and of how many.

    Raises:
        InputError, NotFound, Conflict: a line is wrong; nothing was written.
    """
    checked = Counter(each is not None for each in _bound(library, read_pack(pack, name), actor, sae))
    counts = Counts(skipped=checked[False])
    for batch in _batches(_bound(library, read_pack(pack, name), actor, sae)):
        with library.home.database.reading() if dry_run else library.home.database.writing(alone=True) as session:
            before, talk = counts.written, counts.talk
            merge(session, batch, policy, dry_run, actor, counts)
            if counts.written + counts.talk > before + talk and not dry_run:
                detail = {"labels": counts.written - before, "talk": counts.talk - talk, "policy": policy}
                audit(session, actor, "label.import", name or pack.name, detail)
        advance(len(batch), checked[True])
    if not dry_run:
        catch_up(library, texts())
    return ImportReport(**vars(counts), dry_run=dry_run, policy=policy)


def _bound(library: Library, lines: Iterable[Line], actor: str, sae: str | None) -> Iterator[Incoming | None]:
    """The labels of a pack with the SAEs that they speak of, None for a row without a text; refuses the first that speaks of none."""
    with library.home.database.reading() as session:
        default = None if sae is None else find_sae(session, sae)
        known = list(session.scalars(select(Sae).order_by(Sae.id)))
    found: dict[tuple[str | None, str | None], Sae] = {}
    at, here = now(), library.home.store.identity()
    stops: dict[str | None, Stop] = {}
    rows_of: str | None = None
    for line in lines:
        label = line.label
        if label is None:
            yield None
            continue
        try:
            name, index = _feature(label)
            key = (name, label.sae_sha256)
            if key not in found:
                foreign = name if label.sae_sha256 is None else None
                if foreign is not None and rows_of not in (None, foreign):
                    raise InputError(
                        f"it is of {name}, those before of {rows_of}; import the rows of one SAE at a time"
                    )
                found[key] = _sae_of(known, name, label.sae_sha256, default)
                rows_of = foreign or rows_of
            check_index(found[key], index)
            check_content(label.score, label.score_method, label.source, label.explainer)
        except ScopebaseError as error:
            raise type(error)(f"{line.place}: {error}") from None
        mine = found[key]
        if line.home not in stops:
            stops[line.home] = Stop(home=line.home, by=actor, at=at)
        uid = label.id or _made_id(label, mine, index)
        said = said_of(label, line.number, uid, f"{mine.name}/{index}", line.home, here)
        yield Incoming(line.number, uid, mine, index, label, stops[line.home], said)


def _feature(label: PackLabel) -> tuple[str | None, int]:
    """(name of the SAE, index) that a pack's label says."""
    if label.feature is not None:
        return parse_feature(label.feature)
    if label.index is None:
        raise InputError("it names no feature: give `feature`, or `sae` and `index`")
    return label.sae, label.index


def _sae_of(known: list[Sae], name: str | None, sha256: str | None, default: Sae | None) -> Sae:
    """The SAE here that a label speaks of: the one with its tensors, whatever its name."""
    if sha256 is None:
        if default is None:
            raise InputError(
                "it does not say by `sae_sha256` which tensors it speaks of; say with --sae which SAE here is meant"
            )
        if name != default.name and any(sae.name == name for sae in known):
            raise InputError(f"it speaks of {name}, and --sae says {default.name}")
        return default
    same = [sae for sae in known if sae.sha256 == sha256]
    if default is not None:
        check_tensors(default, sha256)
        return default
    if same:
        return next((sae for sae in same if sae.name == name), same[0])
    named = next((sae for sae in known if sae.name == name), None)
    if named is not None:
        check_tensors(named, sha256)
    raise NotFound(
        f"no SAE here has the tensors {sha256[:12]}... of {name or 'the label'} ('scopebase saes' lists them)"
    )


def _made_id(label: PackLabel, sae: Sae, index: int) -> str:
    """An id for a label that came without one: the same content gets the same."""
    said = [sae.sha256, index, label.text, label.author, label.source, label.explainer]
    return "made:" + hashlib.sha256(json.dumps(said).encode()).hexdigest()[:40]


def _batches(labels: Iterable[Incoming | None]) -> Iterator[list[Incoming]]:
    """Batches without an id twice, so that the second of two is compared with the first."""
    batch: dict[str, Incoming] = {}
    for label in labels:
        if label is None:
            continue
        if len(batch) == BATCH or label.uid in batch:
            yield list(batch.values())
            batch = {}
        batch[label.uid] = label
    if batch:
        yield list(batch.values())
