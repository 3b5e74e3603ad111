"""The model and its SAEs in memory, loaded when the first shard needs them and shared by all runs of a command."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from indexer.encoder import Encoder, make_encoder
from indexer.fit import residuals
from indexer.logits import Head
from indexer.prepare import Plan
from indexer.progress import Progress
from indexer.shard import PairEncoder, ShardEncoder
from indexer.subject import Subject
from schema.errors import WorkFailed
from schema.records import Tokens
from schema.tables import Run


class Engine:
    """What a plan encodes with."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.progress = progress
        self._encoders: dict[int, Encoder] = {}
        self._residuals: dict[int, Tensor] = {}

    @cached_property
    def subject(self) -> Subject:
        plan = self.plan
        self.progress.say(f"loading {plan.model.card.name} ({plan.recipe.dtype}, {plan.device})")
        deepest = max(card.layer for card in plan.saes)
        return plan.model.load(deepest, plan.device, getattr(torch, plan.recipe.dtype), head=bool(plan.logits))

    @cached_property
    def head(self) -> Head:
        """Raises InputError where the family keeps it elsewhere, see `indexer.logits.find_head`."""
        return self.subject.head()

    def residuals(self, tokens: Sequence[Tokens]) -> dict[int, Tensor]:
        """See `indexer.fit.residuals`; read once, for all SAEs of the plan, and kept until the first shard is encoded."""
        if not self._residuals:
            self._residuals = residuals(self.subject, tokens, {card.layer for card in self.plan.saes})
        return self._residuals

    def for_run(self, run: Run) -> ShardEncoder:
        """The encoders of a run's SAEs behind one model."""
        self._residuals = {}
        cards = {pair.sae.layer: pair.sae.sha256 for pair in run.pairs}
        encoders = self.encoders(cards)
        pairs = [PairEncoder(pair.id, pair.sae.layer, encoders[pair.sae.layer]) for pair in run.pairs]
        return ShardEncoder(self.subject, pairs, run.batch_tokens)

    def encoders(self, wanted: dict[int, str]) -> dict[int, Encoder]:
        """Layer -> encoder for layer -> hash of its tensors; what is missing is loaded."""
        missing = {layer: sha256 for layer, sha256 in wanted.items() if layer not in self._encoders}
        if missing:
            with self.progress.bar("loading SAEs", len(missing)) as bar:
                for layer, sha256 in missing.items():
                    self._encoders[layer] = self._load(layer, sha256)
                    bar.advance(1)
        return self._encoders

    def _load(self, layer: int, sha256: str) -> Encoder:
        sae = self.plan.release.load(layer)
        if sae.sha256() != sha256:
            raise WorkFailed(
                f"the SAE of layer {layer} changed while it was read; run the same command again when its file is at rest"
            )
        return make_encoder(sae, self.plan.device)
