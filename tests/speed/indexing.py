"""Indexing speed against the floor and the peers."""

from __future__ import annotations

import argparse

from tests.speed import assets
from tests.speed.harness import FOLDER, Method, Table, against, rounds


def measure(args: argparse.Namespace) -> list[Table]:
    """All layers at both widths, one middle layer, and documents of mixed length."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    assets.make()
    tables = []
    for width, docs in (("8k", "64"), ("32k", "34")):
        shape = ("--width", width, "--docs", docs)
        methods = [
            Method("(a) forward", "floor", ("a", *shape)),
            Method("(b) + W_enc product", "floor", ("b", *shape)),
            Method("(c) + torch.topk", "floor", ("c", *shape)),
            Method("Scopebase, durable", "ours", shape),
            Method("SAELens", "saelens", shape, args.peers),
            Method("delphi", "delphi", shape, args.peers),
        ]
        title = f"All 6 layers, d_sae {assets.WIDTHS[width]:,}, k {assets.K}, joined rows of 128 tokens"
        tables.append(against(rounds(methods, args.rounds), "(b) + W_enc product", title))
    shape = ("--layers", "3", "--docs", "128")
    middle = [
        Method("(c) + torch.topk", "floor", ("c", *shape)),
        Method("Scopebase, durable", "ours", shape),
        Method("SAELens", "saelens", shape, args.peers),
        Method("delphi", "delphi", shape, args.peers),
    ]
    tables.append(against(rounds(middle, args.rounds), "(c) + torch.topk", "One middle layer of 6, d_sae 8,192"))
    for layers in ("3", "all"):
        shape = ("--layers", layers, "--docs", "128")
        mixed = [
            Method("(c) naive batches of 16", "floor", ("c", "--padded", *shape)),
            Method("Scopebase, durable", "ours", ("--documents", *shape)),
        ]
        which = "all 6 layers" if layers == "all" else "one middle layer"
        title = f"Documents of 16 to 512 tokens, borders kept, {which}, d_sae 8,192"
        tables.append(against(rounds(mixed, args.rounds), "(c) naive batches of 16", title))
    return tables
