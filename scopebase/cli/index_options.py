"""The words of an index command, for those who do it here and those who submit it."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Model = Annotated[str, typer.Option("--model", help="A model: hub id (owner/name[@revision]) or directory.")]
Sae = Annotated[
    str,
    typer.Option(
        "--sae", help="Its SAEs: hub id, directory or file of a release, in any of the formats that are read."
    ),
]
Datasets = Annotated[
    list[str],
    typer.Option(
        "--dataset",
        help="NAME=SOURCE; .jsonl, .jsonl.gz, .parquet, .csv, a directory, or hub:<dataset>[:<config>][:<split>]. Repeat for more.",
    ),
]
SetName = Annotated[
    Optional[str],  # noqa: UP045 - Typer on Python 3.11 reads this form
    typer.Option(
        "--set", help="Name of the set in SAE ids; made from the release's name unless given.", show_default=False
    ),
]
Layers = Annotated[str, typer.Option("--layers", help="all, or numbers and ranges: 0,3-5.")]
TextField = Annotated[str, typer.Option("--text-field", help="The row's field that holds the text.")]
Template = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--template", help="Makes the text of several fields: '{question}\\n{answer}'.", show_default=False),
]
IdField = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--id-field", help="The field that names a row; 'id' where rows have one, '' numbers them.", show_default=False
    ),
]
Limit = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--limit", help="Only the first N rows; counts as a dataset version of its own.", show_default=False),
]
BadRows = Annotated[
    str, typer.Option("--bad-rows", help="stop at the first row that cannot be used, or skip and report them.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Longer texts are cut here.")]
Mask = Annotated[str, typer.Option("--mask", help="Tokens that never fire: none, special, first, or special,first.")]
BatchTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--batch-tokens", help="Padded tokens a batch. [default: 2048 on a CPU, 16384 on a GPU]", show_default=False
    ),
]
Dtype = Annotated[str, typer.Option("--dtype", help="The model's arithmetic: auto, float32, bfloat16, float16.")]
Logits = Annotated[
    str,
    typer.Option(
        "--logits",
        help="Store which tokens each feature raises and lowers: auto (not where a CPU takes long), yes, no.",
    ),
]
ModelName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model-name", help="The model's name in ids; made from --model unless given.", show_default=False),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Engine = Annotated[str, typer.Option("--engine", help="What runs the workers: local, or ray for a cluster.")]
Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        help="Processes that share the work; each holds the model and its SAEs. auto is one, or on Ray as many as there is room for.",
    ),
]
Address = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--address",
        help="Ray cluster: auto, host:port or ray://host:port. Without it Ray is started on this machine.",
        show_default=False,
    ),
]
GpusPerWorker = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--gpus-per-worker", help="On Ray. [default: 1 where this machine has one]", show_default=False),
]
CpusPerWorker = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--cpus-per-worker", help="On Ray. [default: a machine's share]", show_default=False),
]
LayersPerWorker = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--layers-per-worker",
        help="On Ray: SAEs of so many layers are held at once; each group becomes a run of its own. [default: all]",
        show_default=False,
    ),
]
