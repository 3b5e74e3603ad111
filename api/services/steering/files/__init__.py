"""Files of vectors. `read` knows a file by its first bytes and by what it says of itself, never by its name; no pickle is ever opened."""

from __future__ import annotations

from collections.abc import Callable

from api.services.steering.files.easysteer import read_easysteer, write_easysteer
from api.services.steering.files.gguf_file import MAGIC, read_gguf, write_gguf
from api.services.steering.files.json_files import parse, read_neuronpedia, read_ours, write_neuronpedia
from api.services.steering.files.safetensors_file import read_safetensors, write_safetensors
from api.services.steering.files.vector_file import VectorFile, check_size
from schema.errors import InputError

Writer = Callable[[VectorFile], bytes]
WRITERS: dict[str, Writer] = {"safetensors": write_safetensors, "gguf": write_gguf, "easysteer": write_easysteer}
MEDIA = {
    "safetensors": "application/octet-stream",
    "gguf": "application/octet-stream",
    "easysteer": "application/json",
    "neuronpedia": "application/json",
    "lm-eval": "text/csv",
}
SUFFIX = {
    "json": "json",
    "safetensors": "safetensors",
    "gguf": "gguf",
    "easysteer": "easysteer.json",
    "neuronpedia": "neuronpedia.json",
    "lm-eval": "csv",
}

LFS = b"version https://git-lfs.github.com/spec/"


def write(file: VectorFile, format: str, strength: float | None = None) -> bytes:
    """A vector as a file.

    Args:
        format: one of `safetensors`, `gguf`, `easysteer` and `neuronpedia`.
        strength: what is suggested, for formats that keep it.

    Raises:
        InputError: it cannot be said in that format.
    """
    return write_neuronpedia(file, strength) if format == "neuronpedia" else WRITERS[format](file)


def read(data: bytes) -> tuple[VectorFile, str]:
    """What a file holds, and the name of its format.

    Raises:
        InputError: a pickle, something else, or a file that is not whole.
        TooLarge: more bytes than any vector has.
    """
    check_size(data)
    if data.startswith(MAGIC):
        return read_gguf(data), "gguf"
    if data[6:9] == b"\0\0{":  # a header's length and its beginning; JSON has no such bytes
        return read_safetensors(data), "safetensors"
    if data[:1] == b"\x80" or data[:4] == b"PK\x03\x04" or data[:6] == b"\x93NUMPY":
        raise InputError(
            "the file is a pickle, an archive or a numpy file, which can hold more than numbers and is never opened here; "
            "write the vector as safetensors, GGUF or JSON"
        )
    if data.startswith(LFS):
        raise InputError("the file is a Git LFS pointer and not the vector itself; fetch that with 'git lfs pull'")
    if data.lstrip()[:1] == b"<":
        raise InputError("the file is a web page and not the vector itself; download the raw file")
    if data.lstrip()[:1] not in (b"{", b"["):
        raise InputError(f"the file begins with {data[:8]!r}, which is neither safetensors, GGUF nor JSON")
    document = parse(data)
    if isinstance(document, dict) and ("hookType" in document or "hookName" in document):
        return read_neuronpedia(document), "neuronpedia"
    rows = document.get("vectors") if isinstance(document, dict) else None
    if isinstance(rows, list) and any(isinstance(row, dict) and {"data", "source", "apply"} & set(row) for row in rows):
        return read_easysteer(document), "easysteer"
    return read_ours(document), "json"
