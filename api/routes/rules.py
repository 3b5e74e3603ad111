"""Rules: discovering, storing, signing, measuring and applying them."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Path, Query, Request

from api.deps import Actor, Books, Cursor, Limit, needs
from api.services.rules import book
from api.services.rules.classify import classify
from api.services.rules.discovery import discover
from api.services.rules.drift import drift_of
from api.services.rules.evaluate import evaluate, evaluations
from api.services.rules.transfer import transfer
from schema.live import LiveModel
from schema.wire.base import Page
from schema.wire.discovery import DiscoverAnswer, DiscoverBody, TransferAnswer, TransferBody
from schema.wire.rules import (
    ClassifyAnswer,
    ClassifyBody,
    DriftAnswer,
    EvaluateAnswer,
    EvaluateBody,
    RuleBody,
    RuleItem,
    SignBody,
)

router = APIRouter(tags=["rules"])
Name = Annotated[str, Path(max_length=64, description="The rule's name")]
Version = Annotated[int | None, Query(ge=1, le=1 << 31, description="The newest unless given")]


@router.post("/rules/discover", summary="Discover rules")
def post_discover(library: Books, body: DiscoverBody) -> DiscoverAnswer:
    """Features whose firing rates differ most between two classes, layer by layer, as rules measured on held-out samples."""
    return discover(library, body)


@router.post("/rules/transfer", summary="Transfer matrix")
def post_transfer(library: Books, body: TransferBody) -> TransferAnswer:
    """Rules discovered on each dataset, or language, measured on all of them."""
    return transfer(library, body)


@router.get("/rules", summary="List rules")
def get_rules(
    library: Books,
    name: Annotated[str | None, Query(max_length=64, description="Every version of this rule")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[RuleItem]:
    """The newest version of each rule."""
    return book.list_rules(library, name, limit, cursor)


@router.post("/rules", summary="Store a rule", status_code=201, dependencies=[needs("write")])
def post_rule(library: Books, body: RuleBody, actor: Actor) -> RuleItem:
    """A rule's next version: an expression written by hand, or what a discovery chose."""
    return book.make_rule(library, body, actor)


@router.get("/rules/{name}", summary="Show a rule")
def get_rule(library: Books, name: Name, version: Version = None) -> RuleItem:
    """One version of a rule, with how it was made."""
    return book.show_rule(library, name, version)


@router.post("/rules/{name}/sign", summary="Sign a rule", dependencies=[needs("write")])
def post_sign(library: Books, name: Name, body: SignBody, actor: Actor) -> RuleItem:
    """Says that the caller stands for this version."""
    return book.sign_rule(library, name, body.version, actor)


@router.post("/rules/{name}/evaluate", summary="Measure a rule", dependencies=[needs("write")])
def post_evaluate(library: Books, name: Name, body: EvaluateBody, actor: Actor) -> EvaluateAnswer:
    """Measures a rule on labelled datasets or slices, beside the trivial predictor, and stores the result."""
    return evaluate(library, name, body, actor)


@router.get("/rules/{name}/evaluations", summary="List a rule's measurements")
def get_rule_evaluations(library: Books, name: Name, limit: Limit = 50, cursor: Cursor = None) -> Page[EvaluateAnswer]:
    """What a rule was measured to do, the newest first."""
    return evaluations(library, name, limit, cursor)


@router.get("/rules/{name}/drift", summary="Check a rule for drift")
def get_drift(library: Books, name: Name, version: Version = None) -> DriftAnswer:
    """What changed under a rule since it was made."""
    return drift_of(library, name, version)


@router.post("/rules/{name}/classify", summary="Classify texts")
def post_classify(library: Books, name: Name, body: ClassifyBody, request: Request) -> ClassifyAnswer:
    """What a rule says of texts, or of stored samples, with the tokens that decided."""
    return classify(library, name, body, cast(LiveModel | None, getattr(request.app.state, "live", None)))
