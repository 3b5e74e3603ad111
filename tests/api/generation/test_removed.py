"""What a text is steered with is removed while it is written: the text ends as it began, and who comes next is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from schema.generation import Choice, Event, Piece
from schema.home import open_home
from schema.settings import Settings
from steering.generator import TorchGenerator, open_generator
from tests.api.generation.listening import listening

SAE = "tiny-qwen3/2-tiny"
STEERED = {
    "prompt": "the cat runs under",
    "max_tokens": 24,
    "temperature": 0,
    "seed": 1,
    "logit_bias": {"1": -100},
    "steering": {
        "ops": [
            {"feature": f"{SAE}/7", "mode": "add", "strength": 0.5, "unit": "residual_norm"},
            {"feature": f"{SAE}/11", "mode": "cap", "strength": 0.1, "unit": "absolute"},
        ],
        "when": {"expression": {"not": {"feature": f"{SAE}/5", "above": 60_000.0}}},
    },
}


@pytest.fixture
def generator(indexed: Settings, model_dir: Path, tmp_path: Path) -> Iterator[TorchGenerator]:
    home = open_home(Settings.read(shutil.copytree(indexed.home, tmp_path / "home"), {}))
    made = open_generator(home, str(model_dir))
    yield made
    made.close(0)
    home.close()


def test_an_sae_that_goes_while_a_text_is_steered_with_it(
    generator: TorchGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(open_home(Settings.read(tmp_path / "home", {})), generator=generator)
    with listening(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        undisturbed = client.post("/v1/completions", json=STEERED)
        assert undisturbed.status_code == 200, undisturbed.text
        removed: list[httpx.Response] = []
        submit = generator.submit

        def meanwhile(choices: Sequence[Choice], deliver: Callable[[Event], None]) -> Any:
            def told(event: Event) -> None:
                if isinstance(event, Piece) and not removed:  # the model's thread waits: the text is half written
                    removed.append(httpx.delete(f"{url}/v1/saes/{SAE}", timeout=30))
                deliver(event)

            return submit(choices, told)

        monkeypatch.setattr(generator, "submit", meanwhile)
        text = client.post("/v1/completions", json=STEERED)
        assert [answer.status_code for answer in removed] == [200], removed[0].text
        for what in ("choices", "steering_applied", "usage"):
            assert text.json()[what] == undisturbed.json()[what]
        gone = client.post("/v1/completions", json=STEERED)
        assert (gone.status_code, len(removed)) == (404, 1)
        assert f"no SAE named '{SAE}'" in gone.json()["detail"]
        plain = client.post("/v1/completions", json={name: STEERED[name] for name in STEERED if name != "steering"})
        assert plain.status_code == 200, plain.text
