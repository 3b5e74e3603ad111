"""What changed under a rule since it was made: its SAEs' tensors, the model, the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.library import Library
from api.services.rules.book import find_rule
from schema.errors import Conflict
from schema.lab import Rule
from schema.tables import Sae
from schema.wire.rules import BoundSae, DriftAnswer, DriftItem, RuleItem

FATAL = ("missing", "sae_sha256", "model")
"""With these a feature's index means something else."""


def drift_of(library: Library, name: str, version: int | None = None) -> DriftAnswer:
    """The check of one version of a rule against the home as it is.

    Raises:
        NotFound: see `api.services.rules.book.find_rule`.
    """
    with library.home.database.reading() as session:
        rule = find_rule(session, name, version)
        found = check_drift(session, rule)
    usable = not any(item.what in FATAL for item in found)
    return DriftAnswer(rule=rule.name, version=rule.version, usable=usable, data=found)


def check_drift(session: Session, rule: Rule) -> list[DriftItem]:
    """Everything that is not as it was, SAE by SAE."""
    bound = {name: BoundSae.model_validate(value) for name, value in rule.saes.items()}
    rows = {sae.name: sae for sae in session.scalars(select(Sae).where(Sae.name.in_(bound)))}
    found = []
    for name, was in bound.items():
        sae = rows.get(name)
        if sae is None:
            found.append(_item(name, "missing", was.sha256, None))
            continue
        now = {
            "sae_sha256": (was.sha256, sae.sha256),
            "model": (was.model, sae.model.name),
            "model_revision": (was.revision, sae.model.revision),
            "tokenizer_sha256": (was.tokenizer_sha256, sae.model.tokenizer_sha256),
        }
        found += [_item(name, what, before, after) for what, (before, after) in now.items() if before != after]
    return found


def refuse_drift(rule: Rule, found: list[DriftItem]) -> None:
    """Raises Conflict where the rule's features do not mean any more what they meant."""
    for item in found:
        if item.what in FATAL:
            raise Conflict(f"rule {rule.name}@{rule.version} cannot be applied: {item.sentence}; discover it again")


def tokenizer_warnings(rule: RuleItem, tokenizers: Mapping[str, str]) -> list[str]:
    """A sentence for each dataset, or loaded model, whose tokenizer is not the rule's."""
    known = {bound.tokenizer_sha256 for bound in rule.saes.values()}
    return [
        f"{name} was read with another tokenizer than the rule was made with"
        for name, sha256 in tokenizers.items()
        if sha256 not in known
    ]


def mask_warnings(rule: RuleItem, mask: str) -> list[str]:
    made = rule.provenance.get("mask", mask)
    return [f"the samples were read with mask {mask}, the rule was made with mask {made}"] if mask != made else []


def _item(sae: str, what: str, was: str, now: str | None) -> DriftItem:
    sentence = (
        f"{sae} is not in this home any more"
        if now is None
        else f"{sae} has another {_WORDS[what]} than when the rule was made ({was[:12]} then, {now[:12]} now)"
    )
    return DriftItem(sae=sae, what=what, was=was, now=now, sentence=sentence)  # type: ignore[arg-type]


_WORDS = {
    "sae_sha256": "SHA-256 of its tensors",
    "model": "model",
    "model_revision": "model revision",
    "tokenizer_sha256": "tokenizer",
}
