"""The length control: its estimator against loops over tables, and that it removes what length alone makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from api.services.library import Library
from api.services.query.length import EDGES, Stratified, control
from api.services.query.query import query_features
from api.services.statistics import rate_difference_interval
from schema.wire.query import FeatureQuery
from tests.indexer.reference import reference
from tests.making import SONGS, TALES

SAE = "tiny-qwen3/2-tiny"


def test_bands_are_half_octaves() -> None:
    assert EDGES[:10].tolist() == [1, 2, 3, 4, 6, 8, 12, 16, 23, 32]


def test_the_estimator_is_mantel_and_haenszels(library: Library, model_dir: Path, release_dir: Path) -> None:
    """Every feature of two real datasets, table by table."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows, fires, bands = {"tales": TALES, "songs": SONGS}, {}, {}
    for name, data in rows.items():
        texts = [row["text"] for row in data]
        fires[name] = reference(model_dir, release_dir, [2], texts, 6, max_tokens=256)[2].any > 0
        lengths = [min(len(tokenizer(text)["input_ids"]), 256) - 1 for text in texts]
        bands[name] = np.array([int((n >= EDGES).sum()) for n in lengths])
    common = sorted(set(bands["tales"]) & set(bands["songs"]))
    question = {
        "sae": SAE,
        "where": {"or": [{"dataset": "tales"}, {"dataset": "songs"}]},
        "length_control": True,
        "limit": 1000,
    }
    answer = query_features(library, FeatureQuery.model_validate(question))
    assert answer.comparison is not None
    assert answer.comparison.length_control is not None
    assert len(common) > 1
    assert answer.comparison.length_control.n_a == sum(b in common for b in bands["tales"]) < 50
    assert answer.comparison.length_control.n_b == sum(b in common for b in bands["songs"])
    for item in answer.data:
        tables = []
        for b in common:
            a, c = (fires[name][bands[name] == b, item.index] for name in rows)
            tables.append((int(a.sum()), len(a), int(c.sum()), len(c)))
        weight = [n * m / (n + m) for _, n, _, m in tables]
        difference = sum(w * (x / n - y / m) for w, (x, n, y, m) in zip(weight, tables, strict=True)) / sum(weight)
        above, below = (sum(t[i] * t[j] / (t[1] + t[3]) for t in tables) for i, j in ((0, 3), (2, 1)))
        assert item.controlled is not None
        assert item.controlled.rate_difference == pytest.approx(difference, abs=1e-12)
        assert item.controlled.lift == (pytest.approx(above / below) if below else None)
        assert item.controlled.interval[0] <= difference <= item.controlled.interval[1]
        excess = sum(x - (x + y) * n / (n + m) for x, n, y, m in tables)
        variance = sum((x + y) * (n + m - x - y) * n * m / ((n + m) ** 2 * (n + m - 1)) for x, n, y, m in tables)
        p = stats.chi2.sf(excess**2 / variance, 1) if variance else 1.0
        assert item.controlled.p_value == pytest.approx(p, rel=1e-6)


def stratified(rng: np.random.Generator, lengths: np.ndarray, rate: Any, n_features: int) -> Stratified:
    """Samples of these lengths that fire each feature with probability rate(length)."""
    bands = np.searchsorted(EDGES, lengths, side="right")
    fires = rng.random((len(lengths), n_features)) < rate(lengths)[:, None]
    used = np.unique(bands)
    counts = np.stack([fires[bands == b].sum(0) for b in used]).astype(np.int32)
    return Stratified(np.bincount(bands, minlength=len(EDGES) + 1), counts, {int(b): i for i, b in enumerate(used)})


def test_it_removes_what_length_alone_makes() -> None:
    """Features that fire at 1 % of all tokens, whatever the text; A's texts are twice as long as B's."""
    rng = np.random.default_rng(0)
    a, b = (rng.lognormal(np.log(middle), 0.5, 400).astype(int) + 1 for middle in (100, 50))
    one, two = (stratified(rng, lengths, lambda n: 1 - 0.99**n, 2000) for lengths in (a, b))
    alike = control(one, two)
    assert alike is not None
    plain = one.fires.sum(0) / 400 - two.fires.sum(0) / 400
    assert plain.mean() > 0.2
    assert abs(alike.difference.mean()) < 0.02, "what differs inside a band of half an octave is left"
    assert (alike.p < 0.05).mean() < 0.09
    assert alike.n_a + alike.n_b < 800


def test_the_interval_covers_the_true_difference() -> None:
    """A's rate is 10 points above B's at every length, and both grow with length."""
    rng = np.random.default_rng(1)
    a, b = (rng.lognormal(np.log(middle), 0.6, 150).astype(int) + 1 for middle in (60, 40))
    covered = []
    for extra in (0.0, 0.1):
        one = stratified(rng, a, lambda n: 0.05 + 0.025 * np.log2(n) + extra, 4000)  # noqa: B023
        two = stratified(rng, b, lambda n: 0.05 + 0.025 * np.log2(n), 4000)
        alike = control(one, two)
        assert alike is not None
        covered.append(((alike.low <= extra) & (extra <= alike.high)).mean())
    assert all(0.93 < share < 0.975 for share in covered), covered


def test_one_band_is_the_plain_comparison() -> None:
    x, y = np.arange(11), np.arange(11)[::-1]
    at_8 = np.bincount([6], weights=[40], minlength=len(EDGES) + 1).astype(int)
    of_30 = np.bincount([6], weights=[30], minlength=len(EDGES) + 1).astype(int)
    alike = control(
        Stratified(at_8, x[None].astype(np.int32), {6: 0}), Stratified(of_30, y[None].astype(np.int32), {6: 0})
    )
    assert alike is not None
    low, high = rate_difference_interval(x, 40, y, 30)
    np.testing.assert_allclose(alike.low, low)
    np.testing.assert_allclose(alike.high, high)
    np.testing.assert_allclose(alike.difference, x / 40 - y / 30)
    p = [
        stats.chi2_contingency([[a, 40 - a], [b, 30 - b]], correction=False).statistic * 69 / 70
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(alike.p, stats.chi2.sf(p, 1))
    assert alike.bands == [(8, 11)]


def test_nothing_in_common_is_no_comparison() -> None:
    n = np.bincount([3], minlength=len(EDGES) + 1)
    one, two = (Stratified(n, np.ones((1, 4), np.int32), {b: 0}) for b in (3, 4))
    assert control(one, two) is None
