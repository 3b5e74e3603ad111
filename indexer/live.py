"""A loaded model that answers for single texts: `schema.live.LiveModel` over the parts that index, so that it fires what the index holds.

One thread owns the model, this one's or that of an engine, and whoever asks waits for a turn. Residuals are kept for one call; SAEs
come and go within a bound.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from sqlalchemy import select
from torch import Tensor, arange, float64, from_numpy

from indexer.encoder import Encoder, make_encoder
from indexer.prepare import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS
from indexer.progress import Progress, Silent
from indexer.saes import Release, open_release
from indexer.saes.known import load_known
from indexer.shard import Batch, cut_batches, make_batch, packed_keys
from indexer.subject import Described, Subject, Tap, choose_device, choose_dtype
from schema.catalog import check_model
from schema.errors import Conflict, InputError
from schema.home import Home
from schema.live import Fired, LiveText, Means
from schema.lookup import find_sae
from schema.packing import VALUE_OF_BITS, pack
from schema.recipe import UNKNOWN, Recipe
from schema.records import Tokens
from schema.tables import Model, Run, Sae

CACHE_BYTES = 4 << 30
"""Of SAEs kept loaded; the one in use is kept whatever its size."""


class Streams(Protocol):
    """A loaded model whose residual stream can be read. `indexer.subject.Subject` is one, and says what these mean."""

    @property
    def device(self) -> torch.device: ...
    @property
    def deepest(self) -> int: ...
    def read(self, ids: Tensor, taps: Mapping[int, Tap]) -> None: ...


class Live:
    """A model of the home, loaded. See `schema.live.LiveModel` for what it promises."""

    def __init__(
        self,
        home: Home,
        name: str,
        described: Described,
        subject: Streams,
        dtype: str,
        releases: Sequence[Release] = (),
        cache_bytes: int = CACHE_BYTES,
        run: Callable[..., Future[Any]] | None = None,
    ) -> None:
        """Args:
        run: calls a function with arguments on the thread that owns the model; a thread of its own unless given.
        """
        self.name = name
        self.dtype = dtype
        self._home, self._described, self._subject, self._releases = home, described, subject, releases
        self._cache_bytes = cache_bytes
        self._encoders: OrderedDict[str, tuple[Encoder, int]] = OrderedDict()
        self._keeping = threading.Lock()
        self._run = run or ThreadPoolExecutor(1, thread_name_prefix="model").submit

    @property
    def tokenizer_sha256(self) -> str:
        return self._described.card.tokenizer_sha256

    def read(
        self, texts: Sequence[str | Sequence[int]], saes: Sequence[str], *, mask: str, max_tokens: int
    ) -> list[LiveText]:
        """See `schema.live.LiveModel.read`."""
        recipe = self._recipe(texts, mask, max_tokens)
        known = [self._find(name) for name in dict.fromkeys(saes)]
        found: list[LiveText] = self._run(self._read, texts, known, recipe).result()
        return found

    def means(
        self, texts: Sequence[str], layers: Sequence[int], *, mask: str, max_tokens: int, last: bool = False
    ) -> Means:
        """See `schema.live.LiveModel.means`."""
        recipe = self._recipe(texts, mask, max_tokens)
        if max(layers) > self._subject.deepest:
            raise InputError(f"layer {max(layers)}: the model was loaded up to layer {self._subject.deepest} only")
        found: Means = self._run(self._means, texts, set(layers), recipe, last).result()
        return found

    def _recipe(self, texts: Sequence[object], mask: str, max_tokens: int) -> Recipe:
        """How texts are read."""
        if not texts:
            raise InputError("give at least one text")
        return Recipe(
            max_tokens=min(max_tokens, self._described.card.context or max_tokens),
            mask=mask,
            dtype=self.dtype,
            tokenizer_sha256=self.tokenizer_sha256,
        )

    def _means(self, texts: Sequence[str], layers: set[int], recipe: Recipe, last: bool) -> Means:
        read = [self._tokens(place, text, recipe)[1] for place, text in enumerate(texts)]
        totals = {layer: np.zeros(self._described.card.d_model) for layer in layers}
        n_texts = n_tokens = 0
        for group in cut_batches(read, self._budget()):
            batch = make_batch(group)
            kept = _last_only(batch) if last else batch.counts
            residuals = self._residuals(batch, layers, kept)
            for layer, residual in residuals.items():
                totals[layer] += residual.sum(0, dtype=float64).cpu().numpy()
            n_texts += int(batch.counts.any(dim=1).sum())
            n_tokens += int(kept.sum())
        return Means({layer: total / max(1, n_tokens) for layer, total in totals.items()}, n_texts, n_tokens)

    def _budget(self) -> int:
        """Tokens of a batch."""
        return CPU_BATCH_TOKENS if self._subject.device.type == "cpu" else GPU_BATCH_TOKENS

    def _find(self, name: str) -> Sae:
        with self._home.database.reading() as session:
            sae = find_sae(session, name)
        if sae.model.name != self.name:
            raise Conflict(f"SAE {name} belongs to model {sae.model.name}, but {self.name} is loaded")
        return sae

    def _read(self, texts: Sequence[str | Sequence[int]], saes: list[Sae], recipe: Recipe) -> list[LiveText]:
        read = [self._tokens(place, text, recipe) for place, text in enumerate(texts)]
        found: list[dict[str, Fired]] = [{} for _ in texts]
        for group in cut_batches([tokens for _, tokens in read], self._budget()) if saes else ():
            batch = make_batch(group)
            residuals = self._residuals(batch, {sae.layer for sae in saes}, batch.counts)
            for sae in saes:
                for tokens, fired in zip(group, self._fired(sae, residuals[sae.layer], batch), strict=True):
                    found[tokens.ordinal][sae.name] = fired
        return [self._answer(text, tokens, fired) for (text, tokens), fired in zip(read, found, strict=True)]

    def _tokens(self, place: int, text: str | Sequence[int], recipe: Recipe) -> tuple[str, Tokens]:
        """A text and its tokens; of token ids the text that they spell."""
        tokenizer = self._described.tokenizer
        if isinstance(text, str):
            spelled, tokens = text, tokenizer.encode([text], [place], recipe)[0]
        else:
            spelled, tokens = tokenizer.given(text, place, recipe)
        if not len(tokens.ids):
            raise InputError(f"text {place + 1} has no token; give at least one character")
        return spelled, tokens

    def _residuals(self, batch: Batch, layers: set[int], wanted: Tensor) -> dict[int, Tensor]:
        """Layer -> (n_wanted, d_model), the tokens that are wanted."""
        kept: dict[int, Tensor] = {}
        counts = wanted.to(self._subject.device)

        def tap(layer: int, residual: Tensor) -> None:
            kept[layer] = residual[counts]

        self._subject.read(batch.ids, {layer: partial(tap, layer) for layer in layers})
        return kept

    def _fired(self, sae: Sae, residual: Tensor, batch: Batch) -> list[Fired]:
        """What each text of a batch fires, with the values that the index would hold."""
        firing = self._encoder(sae).encode(residual) if len(residual) else None
        keys = packed_keys(firing, batch.token_key) if firing is not None else np.empty(0, np.int64)
        packed = pack(keys, batch.last)
        feature = np.repeat(packed.feature.astype(np.int64), packed.count)
        value = VALUE_OF_BITS[packed.bits].astype(np.float32)
        begins = packed.activation_offsets
        return [
            _by_position(packed.position[a:b].astype(np.int64), feature[a:b], value[a:b]) for a, b in pairwise(begins)
        ]

    def encoder(self, name: str) -> Encoder:
        """An SAE on the model's device, from any thread; see `schema.live.LiveModel.read` for what it raises."""
        return self._encoder(self._find(name))

    def _encoder(self, sae: Sae) -> Encoder:
        """The SAE on the model's device, loaded and checked unless it is kept."""
        with self._keeping:
            kept = self._encoders.get(sae.sha256)
            if kept is not None:
                self._encoders.move_to_end(sae.sha256)
                return kept[0]
        loaded = load_known(sae, self._releases)
        size = 4 * (loaded.W_enc.numel() + loaded.d_sae)
        encoder = make_encoder(loaded, self._subject.device)
        with self._keeping:
            while self._encoders and size + sum(n for _, n in self._encoders.values()) > self._cache_bytes:
                self._encoders.popitem(last=False)
            self._encoders[sae.sha256] = encoder, size
        return encoder

    def _answer(self, text: str, tokens: Tokens, fired: dict[str, Fired]) -> LiveText:
        starts, ends = tokens.starts.astype(np.int64), tokens.ends.astype(np.int64)
        spelled = self._described.tokenizer.pieces(tokens.ids)
        pieces = [text[a:b] or piece for a, b, piece in zip(starts, ends, spelled, strict=True)]
        return LiveText(
            text, tokens.ids.astype(np.int64), pieces, starts, ends, tokens.counts, fired, truncated=tokens.truncated
        )


def open_live(
    home: Home,
    model: str,
    *,
    sae_places: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "auto",
    layers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Live:
    """Loads a model that the home knows.

    Args:
        model: hub id or directory.
        sae_places: where SAEs lie, if not where they were indexed from.
        dtype: `auto` is what the newest run of the model was made in, so that texts fire as they did in the index.
        layers: the ones that will be read; the deeper blocks are left out. All unless given.

    Raises:
        InputError: the model cannot be loaded, or the home knows no such model.
    """
    described = Described(model)
    deepest = described.card.n_layers - 1 if layers is None else max(layers, default=0)
    loaded = load_known_model(home, described, device, dtype, deepest=deepest, progress=progress)
    releases = [open_release(place) for place in sae_places]
    return Live(home, loaded.name, described, loaded.subject, loaded.dtype, releases)


@dataclass(frozen=True)
class Loaded:
    """A model of the home on its device."""

    name: str
    subject: Subject
    dtype: str


def load_known_model(
    home: Home,
    described: Described,
    device: str,
    dtype: str,
    *,
    deepest: int | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Loads a model that the home knows.

    Args:
        dtype: `auto` is what the newest run of the model was made in.
        deepest: the last block that is needed; the whole model, with its head, unless given.

    Raises:
        InputError: the model cannot be loaded, or the home knows no such model.
    """
    on = choose_device(device)
    name, precision = known_model(home, described, on, dtype)
    shown = str(precision).removeprefix("torch.")
    (progress or Silent()).say(f"loading {name} ({shown}, {on})")
    return Loaded(name, described.load(deepest or 0, on, precision, whole=deepest is None), shown)


def known_model(home: Home, described: Described, device: torch.device, dtype: str) -> tuple[str, torch.dtype]:
    """The model's name in the home, and the arithmetic that it is loaded in; see `load_known_model`."""
    name, recorded = _known(home, described)
    return name, choose_dtype(recorded if dtype == "auto" and recorded else dtype, device, described.config)


def _known(home: Home, described: Described) -> tuple[str, str | None]:
    """The model's name in the home, and the arithmetic of its newest run."""
    card = described.card
    with home.database.reading() as session:
        same = select(Model).where(Model.revision == card.revision, Model.tokenizer_sha256 == card.tokenizer_sha256)
        found = session.scalars(same).first() or check_model(session, card)
        if found is None:
            names = ", ".join(session.scalars(select(Model.name).order_by(Model.name))) or "none"
            raise InputError(f"the home knows no model {card.name}; it has {names} ('scopebase index' adds one)")
        newest = select(Run).where(Run.model_id == found.id).order_by(Run.finished.desc().nulls_last())
        recorded = (run.recipe["dtype"] for run in session.scalars(newest))
        return found.name, next((dtype for dtype in recorded if dtype != UNKNOWN), None)


def _last_only(batch: Batch) -> Tensor:
    """(n_texts, n_columns) True at each text's last token that counts."""
    return arange(batch.counts.shape[1])[None] == from_numpy(batch.last)[:, None]


def _by_position(
    position: npt.NDArray[np.int64], feature: npt.NDArray[np.int64], value: npt.NDArray[np.float32]
) -> Fired:
    order = np.lexsort((feature, position))
    return Fired(position[order], feature[order], value[order])
