"""Files of vectors: every format gives back the float32 bytes that it was given, and hostile files end in one sentence."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load, save

from api.services.steering.files import read, write
from api.services.steering.files.vector_file import MOST_BYTES, VectorFile
from schema.errors import InputError, TooLarge

FORMATS = ("safetensors", "gguf", "easysteer")
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def vector_files(draw: st.DrawFn, layers: int = 6) -> VectorFile:
    width = draw(st.integers(1, 20))
    numbers = draw(st.lists(st.integers(0, 99), min_size=1, max_size=layers, unique=True))
    found = {}
    for layer in sorted(numbers):
        vector = draw(arrays(np.float32, width, elements=FINITE).filter(lambda v: v.any()))
        found[layer] = vector
    text = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
    return VectorFile(found, draw(text), draw(text), draw(text), draw(text))


def assert_same(found: VectorFile, given_: VectorFile) -> None:
    assert list(found.layers) == list(given_.layers)
    for layer, vector in given_.layers.items():
        assert found.layers[layer].tobytes() == vector.tobytes()


def outcome(data: bytes) -> None:
    """Finite numbers, or one sentence; any other error is a failure."""
    try:
        found, _ = read(data)
    except InputError as error:
        said = str(error)
    else:
        said = ""
        assert all(np.isfinite(vector).all() and vector.any() for vector in found.layers.values())
    assert len(said) < 400


@given(vector_files())
@settings(max_examples=60, deadline=None)
def test_every_format_gives_back_the_same_bytes(file: VectorFile) -> None:
    for format in FORMATS:
        found, known = read(write(file, format))
        assert known == format
        assert_same(found, file)
        assert found.name == file.name
        if format != "easysteer":
            assert (found.model, found.description) == (file.model, file.description)


@given(vector_files(layers=1))
@settings(max_examples=30, deadline=None)
def test_neuronpedia_keeps_a_vector_at_the_next_blocks_input(file: VectorFile) -> None:
    written = json.loads(write(file, "neuronpedia", 7.5))
    (layer,) = file.layers
    assert (written["layerNumber"], written["hookType"]) == (layer + 1, "hook_resid_pre")
    assert written["vectorDefaultSteerStrength"] == 7.5
    found, known = read(json.dumps(written).encode())
    assert known == "neuronpedia"
    assert_same(found, file)


@given(st.binary(max_size=300), st.sampled_from([b"", b"GGUF", b"GGUF\3\0\0\0", b"{", b"\x20\0\0\0\0\0\0\0{"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes, begin: bytes) -> None:
    outcome(begin + data)


@given(vector_files(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_read_or_refused(file: VectorFile, data: st.DataObject) -> None:
    for format in FORMATS:
        whole = bytearray(write(file, format))
        if data.draw(st.booleans()):
            whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
        else:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        outcome(bytes(whole))


@pytest.mark.parametrize("format", ["safetensors", "gguf"])
def test_no_bit_of_the_numbers_falls_over_unseen(format: str) -> None:
    vectors = {layer: np.random.default_rng(layer).normal(size=16).astype(np.float32) for layer in (2, 5)}
    data = write(VectorFile(vectors), format)
    assert read(data)[0].layers[5].tobytes() == vectors[5].tobytes()
    begin = data.find(vectors[2].tobytes())
    for bit in range(0, 16 * 4 * 8, 37):
        damaged = bytearray(data)
        damaged[begin + bit // 8] ^= 1 << bit % 8
        with pytest.raises(InputError, match="do not have the sha256|not finite"):
            read(bytes(damaged))


def test_gguf_is_what_the_gguf_package_reads_and_writes(tmp_path: Path) -> None:
    """Both ways against the format's own library, as repeng uses it."""
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    layers = {layer: rng.standard_normal(37).astype(np.float32) for layer in (0, 3, 11)}
    ours = tmp_path / "ours.gguf"
    ours.write_bytes(write(VectorFile(layers, "m", "qwen3", "calm", "a word"), "gguf"))
    reader = gguf.GGUFReader(ours)
    assert {t.name: t.data.tobytes() for t in reader.tensors} == {
        f"direction.{layer}": vector.tobytes() for layer, vector in layers.items()
    }
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "qwen3"
    assert reader.get_field("controlvector.layer_count").contents() == 3
    theirs = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(theirs, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 2)
    writer.add_array("some.list", ["a", "bc"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_tensor("direction.2", layers[3])
    writer.add_tensor("direction.5", layers[11].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, known = read(theirs.read_bytes())
    assert (known, found.family, list(found.layers)) == ("gguf", "llama", [2, 5])
    np.testing.assert_array_equal(found.layers[2], layers[3])
    np.testing.assert_array_equal(found.layers[5], layers[11].astype(np.float16).astype(np.float32))


def test_safetensors_are_what_the_library_reads_and_torch_writes(tmp_path: Path) -> None:
    from safetensors.torch import save as save_torch

    vector = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    assert {k: v.tobytes() for k, v in load(write(VectorFile({4: vector}), "safetensors")).items()} == {
        "layer.4": vector.tobytes()
    }
    half = torch.from_numpy(vector).bfloat16()
    found, _ = read(save_torch({"direction.9": half}))
    np.testing.assert_array_equal(found.layers[9], half.float().numpy())


def test_easysteer_carries_its_own_digest() -> None:
    """As its `payloads` module computes it, written out again here."""
    import hashlib

    layers = {10: np.array([1.0, -2.0], np.float32), 9: np.array([3.0, 4.0], np.float32)}
    spec = json.loads(write(VectorFile(dict(sorted(layers.items())), name="v"), "easysteer"))
    (vector,) = spec["vectors"]
    assert (vector["algorithm"], vector["scale"], vector["layers"], vector["normalize"]) == (
        "direct",
        1.0,
        [9, 10],
        False,
    )
    assert vector["apply"] == {"prompt": "all", "generation": "all"}
    digest = hashlib.sha256(b"direction:1")
    for name in ("layer.10", "layer.9"):
        digest.update(name.encode() + b"(2,)" + layers[int(name[6:])].tobytes())
    assert vector["data"]["sha256"] == digest.hexdigest()
    vector |= {"scale": -0.5, "layers": [10]}
    found, _ = read(json.dumps(spec).encode())
    assert {layer: v.tolist() for layer, v in found.layers.items()} == {10: [-0.5, 1.0]}


def easysteer(**changes: Any) -> bytes:
    spec = json.loads(write(VectorFile({1: np.ones(2, np.float32)}), "easysteer"))
    spec["vectors"][0] |= changes
    return json.dumps(spec).encode()


def gguf_bytes(n_tensors: int = 0, n_entries: int = 0, rest: bytes = b"") -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n_entries) + rest


def gguf_entry(key: str, value: str) -> bytes:
    return b"".join((struct.pack("<Q", len(key)), key.encode(), struct.pack("<IQ", 8, len(value)), value.encode()))


VECTOR_ENTRY = gguf_entry("general.architecture", "controlvector")
HUGE = struct.pack("<Q", 11) + b"direction.1" + struct.pack("<IQIQ", 1, 10**9, 0, 0)
ENDLESS = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**60)
WIDE_LIST = json.dumps({"layer": 1, "vector": [0.5] * 131_073}).encode()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the file is empty"),
        (b"hello", "neither safetensors, GGUF nor JSON"),
        (pickle.dumps({"layer": 1}), "is a pickle, an archive or a numpy file"),
        (b"PK\x03\x04rest", "is a pickle, an archive or a numpy file"),
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"layer": 1, "vector": [1, NaN]}', "not finite in float32"),
        (b'{"layer": 1, "vector": [1e39, 0]}', "not finite in float32"),
        (b'{"layer": 1, "vector": [1' + b"0" * 400 + b"]}", "beyond what float32 holds"),
        (b'{"layer": 1, "vector": ["1"]}', "holds something that is no number"),
        (b'{"layer": 1, "vector": [true]}', "holds something that is no number"),
        (b'{"layer": 1, "vector": [[1]]}', "holds something that is no number"),
        (b'{"layer": 1, "vector": []}', "is no list of 1 to 131,072 numbers"),
        (WIDE_LIST, "is no list of 1 to 131,072 numbers"),
        (b'{"layer": 1, "vector": [0, 0]}', "every number of the file is zero"),
        (b'{"layer": -1, "vector": [1]}', "is '-1', not a layer's number"),
        (b'{"vectors": []}', "the file has no layer's vector"),
        (b'{"vectors": [{"layer": 1, "vector": [1]}, {"layer": 1, "vector": [1]}]}', "has layer 1 twice"),
        (b'{"vectors": [{"layer": 1, "vector": [1]}, {"layer": 2, "vector": [1, 2]}]}', "have 1 and 2 numbers"),
        (b'{"layer": 1, "vector": [1], "sha256": "00"}', "do not have the sha256 that it says"),
        (b'{"rules": 1}', "the file has no vectors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><title>404</title>", "is a web page"),
        (b'{"hookType": "hook_mlp_out", "layerNumber": 1, "vector": [1]}', "only the residual stream is steered"),
        (b'{"hookType": "hook_resid_pre", "layerNumber": 0, "vector": [1]}', "is the embedding"),
        (gguf_bytes(n_tensors=2**60), "says that it has 1,152,921,504,606,846,976 entries"),
        (gguf_bytes(n_entries=1, rest=ENDLESS), "ends early"),
        (gguf_bytes(1, 1, VECTOR_ENTRY + HUGE), "ends early"),
        (gguf_bytes(n_entries=1, rest=gguf_entry("general.architecture", "llama")), "is a llama, not a controlvector"),
        (gguf_bytes(n_entries=1, rest=VECTOR_ENTRY), "the file has no layer's vector"),
        (b"GGUF\1\0\0\0" + bytes(16), "GGUF of version 1"),
        (struct.pack("<Q", 10**9) + b'{"layer.1":{}}', "is no whole safetensors file"),
        (save({"layer.1": np.ones((2, 2), np.float32)}), "2x2 numbers; each layer has one row"),
        (save({"layer.1": np.ones(2, np.int64)}), "is I64; a vector is F32"),
        (save({"w_dec": np.ones(2, np.float32)}), "a layer's vector is called layer.<n>"),
        (save({"layer.1": np.array([np.inf], np.float32)}), "not finite in float32"),
        (easysteer(algorithm="loreft"), "only `direct` is read"),
        (easysteer(scale=None), "is no finite number"),
        (easysteer(data=None, source="/etc/passwd.gguf"), "a source on another machine is not read"),
        (easysteer(data={"kind": "direction", "tensors": {"layer.1": {"shape": [9], "data": "AAAA"}}}), "no base64"),
        (
            easysteer(data={"kind": "direction", "sha256": "0", "tensors": {"layer.1": {
                "shape": [1], "data": base64.b64encode(np.ones(1, "<f4").tobytes()).decode()}}}),
            "do not have the sha256 that it says",
        ),
    ],
)  # fmt: skip
def test_hostile_files(data: bytes, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        read(data)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_that_is_too_large_is_not_looked_at() -> None:
    with pytest.raises(TooLarge, match="67,108,865 bytes"):
        read(b"G" * (MOST_BYTES + 1))


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    for data in (pickle.dumps(Trap()), pickle.dumps(Trap(), protocol=0)):
        with pytest.raises(InputError):
            read(data)
    archive = io.BytesIO()
    torch.save({"v": torch.ones(2)}, archive)
    with pytest.raises(InputError, match="never opened here"):
        read(archive.getvalue())
    assert not (tmp_path / "sprung").exists()


def test_layers_of_zeros_are_left_out() -> None:
    file, _ = read(save({"layer.1": np.zeros(2, np.float32), "layer.2": np.ones(2, np.float32)}))
    assert (list(file.layers), list(file.empty_layers)) == ([2], [1])
