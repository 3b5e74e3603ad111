"""What happens to files between people: bits flip, ends are cut off, pieces change place, numbers lie, and some were never meant well."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

NUMBERS = (
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"9" * 30,
    b"true",
    b"null",
    b'"x"',
    b"[]",
    b"{}",
    b"1.5",
    b"18446744073709551616",
)
"""What may stand in a text where a number or a word stood."""
WIDE = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1, 1 << 40)
"""Lengths that lie."""
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
PAGE = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>Entry not found</body></html>"
BOMB = 64 << 20
"""Bytes that a bomb unpacks to: far more than any seed."""

Mutation = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Some bits."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 4, 32))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flip_early(data: bytes, rng: random.Random) -> bytes:
    """A byte near the beginning or the end, where headers and directories are."""
    out, near = bytearray(data), min(len(data), 256)
    if out:
        at = rng.randrange(near)
        out[at if rng.random() < 0.5 else len(out) - 1 - at] = rng.randrange(256)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Its end is missing."""
    return data[: rng.randrange(len(data))] if data else data


def splice(data: bytes, rng: random.Random) -> bytes:
    """A piece of it stands somewhere else too, or instead."""
    if len(data) < 2:
        return data * 2
    a, n, b = rng.randrange(len(data)), rng.randrange(1, max(2, len(data) // 4)), rng.randrange(len(data))
    return data[:b] + data[a : a + n] + data[b + (n if rng.random() < 0.5 else 0) :]


def remove(data: bytes, rng: random.Random) -> bytes:
    """A piece is missing in the middle."""
    a = rng.randrange(len(data) + 1)
    return data[:a] + data[a + rng.randrange(1, 64) :]


def length(data: bytes, rng: random.Random) -> bytes:
    """Four or eight bytes, perhaps a length, say something huge."""
    n = rng.choice((4, 8))
    at = rng.randrange(min(len(data), 4096) or 1)
    word = (rng.choice(WIDE) & ((1 << 8 * n) - 1)).to_bytes(n, rng.choice(("little", "big")))
    return data[:at] + word + data[at + n :]


def number(data: bytes, rng: random.Random) -> bytes:
    """A number or a word of a text is another kind of value."""
    found = list(re.finditer(rb'-?\d+(?:\.\d+)?|"[^"\n]{0,80}"|true|false|null', data[: 1 << 16]))
    if not found:
        return flip(data, rng)
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(NUMBERS) + data[one.end() :]


def key(data: bytes, rng: random.Random) -> bytes:
    """A name of a text is another name."""
    found = list(re.finditer(rb'"[A-Za-z_.]+"\s*:', data[: 1 << 16]))
    if not found:
        return splice(data, rng)
    one, other = rng.choice(found), rng.choice(found)
    return data[: one.start()] + other[0] + data[one.end() :]


def wrap(data: bytes, rng: random.Random) -> bytes:
    """Nested without end, behind or in place of the rest."""
    deep = rng.choice((b"[", b'{"a":')) * 100_000
    return deep if rng.random() < 0.5 else data + deep


def odd_text(data: bytes, rng: random.Random) -> bytes:
    """Bytes that are no UTF-8, NUL, and half of a surrogate pair."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((b"\xff\xfe", b"\0", b"\xed\xa0\x80", b"\\ud800", b"\r", b"\xef\xbb\xbf")) + data[at:]


def nan(data: bytes, rng: random.Random) -> bytes:
    """Not a number, or infinity, where perhaps a float32 stood."""
    at = rng.randrange(max(1, len(data) - 4)) & ~3
    return data[:at] + struct.pack("<f", rng.choice((float("nan"), float("inf"), -float("inf"), 3e38))) + data[at + 4 :]


def something_else(_data: bytes, rng: random.Random) -> bytes:
    """Not that file at all."""
    return rng.choice(
        (
            b"",
            PAGE,
            POINTER,
            b"\0" * 4096,
            rng.randbytes(2048),
            b"PK\x03\x04",
            b"PAR1",
            b"\x1f\x8b",
            b"GGUF",
            b"\n",
            b"null",
        )
    )


def gzip_bomb(data: bytes, rng: random.Random) -> bytes:
    """A little that unpacks to very much: 1 GiB of NULs, or of spaces behind what was there."""
    head = data if data.startswith(b"\x1f\x8b") else gzip.compress(data, 1)
    return _packed(b"\0") * 16 if rng.random() < 0.5 else head + _packed(b" ") * 16


@cache
def _packed(byte: bytes) -> bytes:
    return gzip.compress(byte * BOMB, 6)


def zip_bomb(data: bytes, rng: random.Random) -> bytes:
    """An archive whose every member unpacks to very much; or one whose directory says so."""
    if not data.startswith(b"PK"):
        return cut(data, rng)
    names = [b"header.json", b"samples/1.json", b"archive/data.pkl", b"W_enc.npy"]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.encode() for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return cut(data, rng)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in names[:6]:
            archive.writestr(name.decode("utf-8", "replace"), bytes(BOMB))
    return made.getvalue()


def zip_lie(data: bytes, rng: random.Random) -> bytes:
    """Sizes in an archive's directory that its members do not have."""
    at = data.rfind(b"PK\x01\x02") if rng.random() < 0.7 else data.find(b"PK\x03\x04")
    if at < 0:
        return length(data, rng)
    field = at + rng.choice((20, 24, 28, 42)) if data[at + 2] == 1 else at + rng.choice((18, 22, 26))
    return data[:field] + rng.choice(WIDE).to_bytes(8, "little")[:4] + data[field + 4 :]


def checksummed(data: bytes, rng: random.Random) -> bytes:
    """A gzip file that is whole, of content that is not."""
    if not data.startswith(b"\x1f\x8b"):
        return number(data, rng)
    try:
        return gzip.compress(rng.choice((flip, number, splice, key, odd_text, cut))(gzip.decompress(data), rng), 1)
    except (OSError, EOFError, zlib.error):
        return cut(data, rng)


MUTATIONS: tuple[Mutation, ...] = (
    flip, flip, flip, flip_early, flip_early, cut, cut, splice, remove, length, length, number, number, number, key, odd_text, nan,
    something_else, zip_lie, checksummed,
)  # fmt: skip
HEAVY: tuple[Mutation, ...] = (wrap, gzip_bomb, zip_bomb)
"""Large or slow: one in eighty."""


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """(what was done, the file after it): one mutation, sometimes two or three."""
    heavy = rng.random() < 1 / 80
    chosen = [rng.choice(HEAVY)] if heavy else rng.choices(MUTATIONS, k=rng.choice((1, 1, 1, 2, 3)))
    for each in chosen:
        data = each(data, rng)
    return " + ".join(each.__name__ for each in chosen), data


class _Runs:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.mark), "w")


def hostile(mark: Path) -> dict[str, bytes]:
    """Files that would run code, which leaves `mark` behind, wherever a reader unpickles them."""
    import numpy as np
    import torch

    plain = pickle.dumps(_Runs(mark))
    made: dict[str, bytes] = {f"pickle of protocol {p}": pickle.dumps(_Runs(mark), protocol=p) for p in (0, 2, 4, 5)}
    for name, options in (("torch archive", {}), ("old torch file", {"_use_new_zipfile_serialization": False})):
        out = io.BytesIO()
        torch.save({"W_enc": _Runs(mark)}, out, **options)
        made[name] = out.getvalue()
    out = io.BytesIO()
    np.save(out, np.array([_Runs(mark)], dtype=object), allow_pickle=True)
    made["numpy file of objects"] = out.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for entry in ("W_enc.npy", "W_dec.npy", "b_enc.npy", "b_dec.npy", "threshold.npy"):
            archive.writestr(entry, out.getvalue())
        archive.writestr("archive/data.pkl", plain)
        archive.writestr("data.pkl", plain)
    made["archive of objects"] = packed.getvalue()
    made["JSON with a path"] = (
        b'{"vectors": [{"source": "/etc/passwd", "apply": {}, "data": {"kind": "direction", "path": "/etc/passwd"}}]}'
    )
    return made
