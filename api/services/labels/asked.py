"""Explaining for somebody who asks the service: with the explainer that the service was started with, and without its secrets."""

from __future__ import annotations

import logging
from collections.abc import Callable

from api.services.labels.chat import Budget, Explainer, Refused
from api.services.labels.explaining import Plan, explain
from api.services.library import Library
from schema.errors import WorkFailed
from schema.wire.labels import ExplainAsk, ExplainReport

LOG = logging.getLogger("scopebase.requests")


def explain_asked(
    library: Library, asked: ExplainAsk, explainer: Explainer, actor: str, advance: Callable[[int, int], None]
) -> ExplainReport:
    """Asks for a label of each feature; see `api.services.labels.explaining.explain`.

    Raises:
        NotFound: no such SAE or feature.
        WorkFailed: the endpoint will not talk to the service. What it said, which may hold a part of the key, is only logged.
    """
    plan = Plan(asked.shown, asked.scored, asked.seed, asked.again, asked.at_once)
    chat = explainer.chat(Budget(asked.max_requests, asked.max_tokens))
    try:
        return explain(library, asked.sae, asked.features, chat, actor, plan, advance)
    except Refused as error:
        LOG.error("%s", error)
        raise WorkFailed(
            f"the explainer model refuses the service (status {error.status}); who runs it finds the reason in its log"
        ) from None
    finally:
        chat.close()
