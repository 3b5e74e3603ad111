from __future__ import annotations

import pytest

from schema.errors import InputError, not_found
from schema.names import SaeName, check_dataset, check_set, model_slug, parse_dataset, parse_sae, set_from_release


@pytest.mark.parametrize(
    ("source", "slug"),
    [
        ("Qwen/Qwen3-1.7B-Base", "qwen3-1.7b-base"),
        ("../models/tinystories-3m/", "tinystories-3m"),
        ("C:\\models\\My Model", "my-model"),
        ("google/gemma-2-2b", "gemma-2-2b"),
    ],
)
def test_a_models_name_is_its_base_name(source: str, slug: str) -> None:
    assert model_slug(source) == slug


@pytest.mark.parametrize(
    ("release", "set_name"),
    [
        ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "qwenscope-res-32k-l50"),
        ("SAE-Res-Qwen3-30B-A3B-Base-W128K-L0_100", "qwenscope-res-128k-l100"),
        ("SAE-Res-TinyStories-3M-W3K-L0_8-seed1", "qwenscope-res-3k-l8-seed1"),
        ("gpt2-small_res jb", "gpt2-small-res-jb"),
    ],
)
def test_a_sets_name_is_made_from_the_release(release: str, set_name: str) -> None:
    assert set_from_release(release) == set_name
    assert check_set(set_name) == set_name


def test_ids_are_read_as_they_are_written() -> None:
    name = SaeName("qwen3-1.7b-base", 12, "qwenscope-res-32k-l50")
    assert parse_sae(str(name)) == name
    assert parse_dataset("gsm8k@2") == ("gsm8k", 2, None)
    assert parse_dataset("gsm8k") == ("gsm8k", None, None)
    assert parse_dataset("gsm8k@run17") == ("gsm8k", None, 17)


@pytest.mark.parametrize("text", ["a@", "a@²", "a@0", "a@-1", "a@99999999999999999999", "a@run", "a@runs1", "a@1@2"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"what follows '@' is a dataset's version, as in a@2, or a run, as in a@run7"):
        parse_dataset(text)


@pytest.mark.parametrize("text", ["", "a/b", "a/3", "a/x-set", "a/3-Set", "a/b/3-set"])
def test_what_is_no_sae_id_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no SAE's id"):
        parse_sae(text)


@pytest.mark.parametrize("name", ["", "-a", "a=b", "a b", "a@1", "x" * 65, "ü"])
def test_what_is_no_dataset_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="dataset name"):
        check_dataset(name)


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    error = not_found("dataset", "gsm8", ["gsm8k", "math"], "scopebase datasets")
    assert "did you mean gsm8k?" in str(error)
    assert error.exit_status == 2
    assert error.http_status == 404
