"""A loaded model fires for a text exactly what the index holds of it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexer.live import Live, open_live
from schema.errors import Conflict, InputError, NotFound
from schema.home import Home, open_home
from schema.layout import sample_key
from schema.lookup import find_sources
from schema.packing import read_detail
from schema.settings import Settings
from tests.making import PROBLEMS, TALES, make_release

SAES = [f"tiny-qwen3/{layer}-tiny" for layer in range(4)]


@pytest.fixture(scope="module")
def home(indexed: Settings) -> Iterator[Home]:
    found = open_home(indexed)
    yield found
    found.close()


@pytest.fixture(scope="module")
def live(home: Home, model_dir: Path) -> Live:
    return open_live(home, str(model_dir))


def read(live: Live, texts: list[Any], saes: list[str] = SAES, mask: str = "special,first") -> list[Any]:
    return live.read(texts, saes, mask=mask, max_tokens=512)


def test_texts_fire_what_the_index_holds(home: Home, live: Live) -> None:
    """Every activation of 20 tales in all four SAEs: same tokens, features and stored values."""
    texts = [row["text"] for row in TALES[:20]]
    answers = read(live, texts)
    assert [answer.text for answer in answers] == texts
    for sae in SAES:
        with home.database.reading() as session:
            source = find_sources(session, sae, ["tales"]).sources[0]
        rows = home.store.rows("forward", [sample_key(source.pair, i) for i in range(20)])
        tokens = home.store.rows("tokens", [sample_key(source.run, i) for i in range(20)])
        for i, answer in enumerate(answers):
            assert answer.ids.tolist() == tokens.column("token_ids")[i].as_py()
            assert answer.starts.tolist() == tokens.column("starts")[i].as_py()
            features = np.cumsum(rows.column("features")[i].as_py())
            stored = read_detail(rows.column("detail")[i].as_py(), features)
            order = np.lexsort((stored.feature, stored.position))
            fired = answer.fired[sae]
            assert len(fired.value) > 50
            np.testing.assert_array_equal(fired.feature, stored.feature[order])
            np.testing.assert_array_equal(fired.position, stored.position[order])
            np.testing.assert_allclose(fired.value, stored.value[order], rtol=1e-3)


def test_token_ids_fire_as_their_text_does(live: Live) -> None:
    text = read(live, [PROBLEMS[3]["text"]])[0]
    ids = read(live, [text.ids.tolist()])[0]
    assert ids.ids.tolist() == text.ids.tolist()
    assert "".join(ids.pieces) == ids.text
    assert ids.text == "<s>" + text.text
    assert [ids.text[a:b] for a, b in zip(ids.starts, ids.ends, strict=True)] == ids.pieces
    for sae in SAES:
        np.testing.assert_array_equal(ids.fired[sae].feature, text.fired[sae].feature)
        np.testing.assert_allclose(ids.fired[sae].value, text.fired[sae].value, rtol=1e-3)


def test_the_mask_keeps_tokens_from_firing(live: Live) -> None:
    masked, whole = (read(live, ["a cat"], SAES[:1], mask)[0] for mask in ("special,first", "none"))
    assert not masked.counts[0]
    assert 0 not in masked.fired[SAES[0]].position
    assert whole.counts.all()
    assert 0 in whole.fired[SAES[0]].position


def test_long_texts_are_cut_and_say_so(live: Live) -> None:
    answer = live.read(["a cat " * 50], [], mask="none", max_tokens=7)[0]
    assert answer.truncated
    assert len(answer.ids) == 7


def test_callers_take_turns(live: Live) -> None:
    """Eight threads with texts and SAEs of their own get what one alone gets."""
    texts = [row["text"] for row in PROBLEMS[:8]]
    alone = [read(live, [text], [SAES[i % 4]])[0] for i, text in enumerate(texts)]
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        found[i] = read(live, [texts[i]], [SAES[i % 4]])[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        np.testing.assert_array_equal(found[i].fired[SAES[i % 4]].feature, expected.fired[SAES[i % 4]].feature)


def test_saes_are_kept_within_a_bound(home: Home, model_dir: Path) -> None:
    one = 4 * (256 * 32 + 256)
    live = open_live(home, str(model_dir))
    live._cache_bytes = 2 * one
    full = read(live, ["a cat sleeps"])[0]
    assert len(live._encoders) == 2
    again = read(live, ["a cat sleeps"])[0]
    for sae in SAES:
        np.testing.assert_array_equal(full.fired[sae].feature, again.fired[sae].feature)


@pytest.mark.parametrize(
    ("texts", "saes", "error", "words"),
    [
        ([], SAES, InputError, "give at least one text"),
        ([[]], SAES, InputError, "text 1 has no token"),
        ([[3, 400]], SAES, InputError, "token id 400 is none of the model's, which are 0 to 399"),
        (["a"], ["tiny-qwen3/2-tin"], NotFound, "did you mean tiny-qwen3/2-tiny"),
    ],
)
def test_what_cannot_be_read_is_said(live: Live, texts: Any, saes: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        read(live, texts, saes)


def test_only_the_very_sae_that_was_indexed_is_used(
    indexed: Settings, model_dir: Path, release_dir: Path, tmp_path: Path
) -> None:
    """A moved file is found with --sae-dir, another one's tensors are refused."""
    shutil.copytree(indexed.home, tmp_path / "home")
    home = open_home(Settings.read(tmp_path / "home", {}))
    moved, other = tmp_path / "moved", make_release(tmp_path / "other", 4, 32, 256, 6, seed=9)
    shutil.copytree(release_dir, moved)
    from sqlalchemy import update

    from schema.tables import Sae

    with home.database.writing() as session:
        session.execute(update(Sae).values(source=str(tmp_path / "gone" / "layer0.sae.pt")))
    with pytest.raises(InputError, match="is not at .*gone.* any more; say where with --sae-dir"):
        read(open_live(home, str(model_dir)), ["a"], SAES[:1])
    with pytest.raises(Conflict, match="was indexed from other tensors"):
        read(open_live(home, str(model_dir), sae_places=[str(other)]), ["a"], SAES[:1])
    found = read(open_live(home, str(model_dir), sae_places=[str(other), str(moved)]), ["a cat"], SAES[:1])
    assert len(found[0].fired[SAES[0]].value)
    home.close()


def test_only_a_model_of_the_home_is_loaded(home: Home, tmp_path: Path) -> None:
    from tests.making import make_model

    other = make_model(tmp_path / "other-qwen3", seed=5)
    with pytest.raises(InputError, match="the home knows no model other-qwen3; it has tiny-qwen3"):
        open_live(home, str(other))
    with pytest.raises(Conflict, match="has other weights"):
        open_live(home, str(make_model(tmp_path / "tiny-qwen3", seed=5)))


def test_the_arithmetic_is_that_of_the_index(live: Live) -> None:
    assert live.dtype == "float32"
    assert next(live._subject._decoder.parameters()).dtype == torch.float32


@pytest.mark.parametrize("last", [False, True])
def test_means_are_those_of_the_plain_model(live: Live, model_dir: Path, last: bool) -> None:
    """Texts of different lengths, one at a time through transformers, averaged in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = [row["text"] for row in (*TALES[:7], *PROBLEMS[:3])]
    tokenizer, network = AutoTokenizer.from_pretrained(model_dir), AutoModelForCausalLM.from_pretrained(model_dir)
    special, found = set(tokenizer.all_special_ids), []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        kept = [p for p, token in enumerate(ids) if p and token not in special]
        with torch.no_grad():
            hidden = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
        found.append(torch.stack([hidden[2][0], hidden[3][0]])[:, kept[-1:] if last else kept].double())
    expected = torch.cat(found, 1)
    means = live.means(texts, [1, 2], mask="special,first", max_tokens=512, last=last)
    assert (means.n_texts, means.n_tokens) == (10, expected.shape[1])
    for place, layer in enumerate((1, 2)):
        np.testing.assert_allclose(means.mean[layer], expected[place].mean(0).numpy(), atol=1e-5)


def test_means_without_a_token_that_counts_are_zero_of_none(live: Live) -> None:
    means = live.means(["a"], [0], mask="special,first", max_tokens=1)
    assert (means.n_texts, means.n_tokens, float(np.abs(means.mean[0]).max())) == (0, 0, 0.0)


def test_means_of_a_block_that_was_not_loaded_are_refused(home: Home, model_dir: Path) -> None:
    with pytest.raises(InputError, match="layer 3: the model was loaded up to layer 1 only"):
        open_live(home, str(model_dir), layers=[1]).means(["a b"], [3], mask="special,first", max_tokens=9)
