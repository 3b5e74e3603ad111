"""A model or tokenizer that wants to bring code of its own is refused: no question is asked, nothing runs, nothing hangs."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import pytest

from indexer.subject import Described
from schema.errors import InputError

CODE = "import pathlib\npathlib.Path({mark!r}).touch()\nclass C: pass\n"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused_and_does_not_run(
    tmp_path: Path, model_dir: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library would ask a person whether to trust the code, and wait."""

    def ask(*_: object) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(builtins, "input", ask)
    model, mark = shutil.copytree(model_dir, tmp_path / "m"), tmp_path / "ran"
    (model / "code.py").write_text(CODE.format(mark=str(mark)))
    said = json.loads((model / file).read_text())
    if file == "config.json":
        said |= {"model_type": "its-own", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C"}}
    else:
        said |= {"tokenizer_class": "ItsOwn", "auto_map": {"AutoTokenizer": ["code.C", "code.C"]}}
    (model / file).write_text(json.dumps(said))
    if file == "config.json":
        with pytest.raises(InputError, match="code of its own, which Scopebase does not run"):
            Described(str(model))
    else:  # what the library has itself reads it
        assert Described(str(model)).tokenizer.sha256
    assert not mark.exists()
