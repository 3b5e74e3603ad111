"""Small random models on the bench: steered as an engine would, and by hand in float64, a token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from indexer.encoder import Encoder, make_encoder
from indexer.saes import Sae
from indexer.subject import Subject, find_blocks
from schema.generation import Choice, Condition, Op, Sampling
from schema.wire.steering import Where
from steering.hooks import Pass, Program, Row, Steerer
from tests.indexer.test_subject import saved

D_MODEL, D_SAE, K, N_LAYERS = 32, 64, 6, 4
SPECIAL = (0, 1)


def make_sae(layer: int, activation: str = "topk", *, rescaled: bool = False, seed: int = 0) -> Sae:
    """Columns of different lengths that are not the encoder's rows, so that mixing anything up shows."""
    g = torch.Generator().manual_seed(100 * seed + layer)
    lengths = torch.rand(D_SAE, generator=g) + 0.5
    return Sae(
        layer=layer,
        W_enc=torch.randn(D_SAE, D_MODEL, generator=g),
        W_dec=torch.nn.functional.normalize(torch.randn(D_MODEL, D_SAE, generator=g), dim=0) * lengths,
        b_enc=0.2 * torch.randn(D_SAE, generator=g),
        b_dec=torch.randn(D_MODEL, generator=g),
        activation=activation,
        k=K if activation == "topk" else None,
        threshold=0.3 * torch.rand(D_SAE, generator=g) if activation == "jumprelu" else None,
        rescale_by_decoder_norm=rescaled,
    )


SAES = {f"tiny/{layer}-topk": make_sae(layer) for layer in range(N_LAYERS)}
SAES |= {"tiny/1-jump": make_sae(1, "jumprelu", seed=1), "tiny/2-relu": make_sae(2, "relu", rescaled=True, seed=2)}


@cache
def folder(family: str) -> Path:
    return saved(family, Path(mkdtemp(prefix="steering-")) / family)


@dataclass(frozen=True)
class Line:
    """One row to run: a choice and what it is made to have generated."""

    choice: Choice
    generated: tuple[int, ...] = ()
    program: Program | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.choice.ids, *self.generated)


class Bench:
    """A model with hooks of a reader that were there before the steering ones."""

    def __init__(self, family: str = "qwen3", device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device = torch.device(device)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder(family), dtype=dtype).eval()
        # random weights leave the streams short of anything that a random SAE fires on
        decoder, blocks = find_blocks(model)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(20)
        self.model: Any = model.to(self.device)
        self.seen: dict[int, Tensor] = {}
        for layer, block in enumerate(blocks):
            block.register_forward_hook(self._reader(layer))
        self.subject = Subject(decoder, blocks, len(blocks) - 1, self.device)
        self.encoders = {name: make_encoder(sae, self.device) for name, sae in SAES.items()}
        self.steerer = Steerer(self.subject, self.encoder, SPECIAL)

    def encoder(self, name: str) -> Encoder:
        return self.encoders[name]

    def _reader(self, layer: int) -> Callable[..., None]:
        def hook(_m: Any, _i: Any, out: Any) -> None:
            self.seen[layer] = (out[0] if isinstance(out, tuple) else out).detach().float().cpu().clone()

        return hook

    def program(self, choice: Choice) -> Program:
        return self.steerer.program(choice)

    def line(self, ids: Sequence[int], *ops: Op, generated: Sequence[int] = (), when: Condition | None = None) -> Line:
        choice = Choice(tuple(ids), Sampling(len(generated) + 1), tuple(ops), when)
        return Line(choice, tuple(generated), self.program(choice) if ops else None)

    @torch.inference_mode()
    def run(self, lines: Sequence[Line], chunk: int | None = None) -> list[dict[int, Tensor]]:
        """Prompts padded on the left and read in chunks, then a generated token a pass; layer -> (n_tokens, d_model) of each row."""
        length = max(len(line.choice.ids) for line in lines)
        pads = [length - len(line.choice.ids) for line in lines]
        past = transformers.DynamicCache(config=self.model.config)
        found: list[dict[int, list[Tensor]]] = [{layer: [] for layer in range(len(self.subject.blocks))} for _ in lines]
        cuts = list(range(0, length, chunk or length))
        spans = [(begin, min(begin + (chunk or length), length)) for begin in cuts]
        spans += [(n, n + 1) for n in range(length, length + len(lines[0].generated))]
        for begin, end in spans:
            rows = [_row(line, pad, begin, end) for line, pad in zip(lines, pads, strict=True)]
            ids = [[5] * (end - begin - len(row.ids)) + list(row.ids) for row in rows]
            columns = torch.arange(end)
            mask = torch.stack([columns >= pad for pad in pads])
            places = torch.stack([(columns[begin:] - pad).clamp(min=0) for pad in pads])
            with self.steerer.steering(rows) as steered:
                self.model(
                    input_ids=torch.tensor(ids, device=self.device),
                    attention_mask=mask.to(self.device) if any(pads) else None,
                    position_ids=places.to(self.device),
                    past_key_values=past,
                    use_cache=True,
                )
            self.last: Pass = steered
            for number, row in enumerate(rows):
                for layer, stream in self.seen.items():
                    found[number][layer].append(stream[number, row.pad : row.pad + len(row.ids)])
        return [{layer: torch.cat(parts) for layer, parts in one.items()} for one in found]

    @torch.inference_mode()
    def by_hand(self, ids: Sequence[int], ops: Sequence[Op], touches: Callable[[int, Op], bool]) -> dict[int, Tensor]:
        """The streams of one whole sequence in one pass, edited by hooks of our own.

        Args:
            touches: whether the token at a position of the sequence is touched by an operation.
        """
        handles = []

        def hook(layer: int) -> Callable[..., Any]:
            def edit(_m: Any, _i: Any, out: Any) -> Any:
                stream = (out[0] if isinstance(out, tuple) else out).clone()
                for op in ops:
                    for position in range(len(ids)):
                        if op.layer == layer and touches(position, op):
                            masked = position == 0 or ids[position] in SPECIAL
                            h = stream[0, position].double().cpu().numpy()
                            stream[0, position] = torch.from_numpy(edited(op, h, masked)).to(stream)
                return (stream, *out[1:]) if isinstance(out, tuple) else stream

            return edit

        for layer, block in enumerate(self.subject.blocks):
            handles.append(block.register_forward_hook(hook(layer), prepend=True))
        try:
            self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return {layer: stream[0] for layer, stream in self.seen.items()}


def _row(line: Line, pad: int, begin: int, end: int) -> Row:
    first = max(begin - pad, 0)
    ids = line.ids[first : max(end - pad, 0)]
    return Row(line.program, ids, first, len(line.choice.ids), end - begin - len(ids))


def activations(sae: Sae, h: np.ndarray) -> np.ndarray:
    """(d_sae,) float64, written down from the formats' definitions."""
    W, b, W_dec = (t.double().numpy() for t in (sae.W_enc, sae.b_enc, sae.W_dec))
    pre = W @ h + b
    if sae.rescale_by_decoder_norm:
        pre = pre * np.linalg.norm(W_dec, axis=0)
    if sae.activation == "jumprelu":
        assert sae.threshold is not None
        return np.where(pre > sae.threshold.double().numpy(), np.maximum(pre, 0), 0)
    if sae.activation == "topk":
        keep = np.argsort(-pre, kind="stable")[: sae.k]
        kept = np.zeros_like(pre)
        kept[keep] = pre[keep]
        pre = kept
    return np.maximum(pre, 0)


def edited(op: Op, h: np.ndarray, masked: bool) -> np.ndarray:
    """What an operation makes of one token, mode by mode and unit by unit as users are told."""
    v = op.vector.astype(np.float64)
    u, size, s = v / np.linalg.norm(v), np.linalg.norm(h), op.strength
    sae = SAES[op.sae] if op.sae else None
    d = u if sae is not None and sae.rescale_by_decoder_norm else v  # what an activation of 1 adds
    if op.mode == "add":
        return (
            h
            + {
                "absolute": lambda: s * v,
                "unit": lambda: s * u,
                "residual_norm": lambda: s * size * u,
                "feature_max": lambda: s * float(op.largest or 0) * d,
            }[op.unit]()
        )
    if op.mode == "ablate" or sae is None:
        c = float(h @ u)
        target = {"absolute": s, "unit": s, "residual_norm": s * size}.get(op.unit, np.nan)
        return h + (_changed(op.mode, c, s, target) - c) * u
    assert op.feature is not None
    a = 0.0 if masked else float(activations(sae, h)[op.feature])
    length = float(np.linalg.norm(d))
    target = {
        "absolute": s,
        "unit": s / length,
        "residual_norm": s * size / length,
        "feature_max": s * float(op.largest or 0),
    }[op.unit]
    return h + (_changed(op.mode, a, s, target) - a) * d


def _changed(mode: str, c: float, s: float, target: float) -> float:
    return {
        "set": target,
        "cap": min(c, target),
        "floor": max(c, target),
        "multiply": s * c,
        "suppress": (1 - s) * c,
        "ablate": (1 - s) * c,
    }[mode]


def feature_op(
    mode: Any, strength: float, unit: Any = "absolute", sae: str = "tiny/1-topk", feature: int = 3, **more: Any
) -> Op:
    layer = more.pop("layer", SAES[sae].layer)
    vector = SAES[sae].W_dec[:, feature].numpy()
    more = {"place": 0, "largest": 2.5, **more}
    return Op(
        target=f"{sae}/{feature}",
        layer=layer,
        mode=mode,
        strength=strength,
        unit=unit,
        vector=vector,
        sae=sae,
        feature=feature,
        **more,
    )


def vector_op(mode: Any, strength: float, unit: Any = "absolute", layer: int = 1, seed: int = 0, **more: Any) -> Op:
    vector = np.random.default_rng(seed).standard_normal(D_MODEL).astype(np.float32)
    return Op(
        **{"place": 0, "target": f"random-{seed}@1", "vector": vector, **more},
        layer=layer,
        mode=mode,
        strength=strength,
        unit=unit,
    )


def ordinary(ids: Sequence[int]) -> Callable[[int, Op], bool]:
    """The default where."""
    return lambda position, _op: position > 0 and ids[position] not in SPECIAL


EVERYWHERE = Where(skip_special=False)
