"""Labels that a lab shares: made, read, changed, voted on, commented, taken back, searched, exported and imported."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from api.deps import Actor, Books, Cursor, Limit, needs
from api.services.labels import book, talk
from api.services.labels.book import Filter
from api.services.labels.features import find_features
from schema.wire.base import Page
from schema.wire.labels import (
    CommentItem,
    FeaturesFound,
    LabelChange,
    LabelEventItem,
    LabelItem,
    LabelSearch,
    LabelSource,
    NewComment,
    NewLabel,
    NewVote,
)

router = APIRouter(tags=["labels"])
Label = Annotated[str, Path(max_length=64, description="The label's id")]
Version = Annotated[int | None, Query(ge=1, le=1 << 31, description="Refuse with 409 where it is not at this version")]


def which_labels(
    sae: Annotated[str | None, Query(max_length=256, description="Only this SAE's")] = None,
    feature: Annotated[str | None, Query(max_length=300, description="`<sae>/<index>`")] = None,
    author: Annotated[str | None, Query(max_length=128, description="Only this person's, or model's")] = None,
    source: Annotated[LabelSource | None, Query(description="Only those that came about so")] = None,
    text: Annotated[str | None, Query(max_length=1000, description="Contained in the label, whatever the case")] = None,
    updated_since: Annotated[
        datetime | None, Query(description="Changed, voted on or commented at or after this moment, UTC")
    ] = None,
    deleted: Annotated[bool, Query(description="The deleted ones instead")] = False,
) -> Filter:
    return Filter(sae, feature, author, source, text, updated_since, deleted)


Which = Annotated[Filter, Depends(which_labels)]


@router.get("/labels", summary="Labels, newest first")
def get_labels(library: Books, which: Which, limit: Limit = 50, cursor: Cursor = None) -> Page[LabelItem]:
    """Every condition narrows; without any, all labels of the home."""
    return book.list_labels(library, which, limit, cursor)


@router.post("/labels", summary="Make a label", status_code=201, dependencies=[needs("label")])
def post_label(library: Books, new: NewLabel, actor: Actor) -> LabelItem:
    """Its author is who asks. Refused with 409 where it speaks of other tensors than the SAE has here."""
    return book.create(library, new, actor)


@router.get("/labels/{label}", summary="A label")
def get_label(library: Books, label: Label) -> LabelItem:
    """With its provenance."""
    return book.get(library, label)


@router.patch("/labels/{label}", summary="Change a label", dependencies=[needs("label")])
def patch_label(library: Books, label: Label, wanted: LabelChange, actor: Actor) -> LabelItem:
    """Name the version that you saw: 409 where somebody was quicker."""
    return book.change(library, label, wanted, actor)


@router.delete("/labels/{label}", summary="Delete a label", dependencies=[needs("label")])
def delete_label(library: Books, label: Label, actor: Actor, version: Version = None) -> LabelItem:
    """It is kept, and `undo` brings it back."""
    return book.delete(library, label, actor, version)


@router.post("/labels/{label}/votes", summary="Vote on a label", dependencies=[needs("label")])
def post_vote(library: Books, label: Label, vote: NewVote, actor: Actor) -> LabelItem:
    """One vote each; a second one replaces the first, 0 takes it back."""
    return talk.vote(library, label, actor, vote.value)


@router.get("/labels/{label}/comments", summary="Comments on a label")
def get_comments(library: Books, label: Label, limit: Limit = 50, cursor: Cursor = None) -> Page[CommentItem]:
    """Oldest first."""
    return talk.comments(library, label, limit, cursor)


@router.post("/labels/{label}/comments", summary="Comment on a label", status_code=201, dependencies=[needs("label")])
def post_comment(library: Books, label: Label, comment: NewComment, actor: Actor) -> CommentItem:
    """Its author is who asks."""
    return talk.comment(library, label, actor, comment.text)


@router.get("/labels/{label}/history", summary="Every change of a label")
def get_history(library: Books, label: Label, limit: Limit = 50, cursor: Cursor = None) -> Page[LabelEventItem]:
    """Newest first, with what each changed; of deleted labels too."""
    return talk.history(library, label, limit, cursor)


@router.post("/labels/{label}/undo", summary="Take the last change back", dependencies=[needs("label")])
def post_undo(library: Books, label: Label, actor: Actor, version: Version = None) -> LabelItem:
    """A deletion too. Asked again, the one before it."""
    return talk.undo(library, label, actor, version)


@router.post("/features/search", summary="Features by what their labels say")
def post_features_search(library: Books, asked: LabelSearch) -> FeaturesFound:
    """By words (those with all of them; where there is none, with any), by meaning, or both."""
    return find_features(library, asked.text, asked.sae, asked.how, asked.limit)
