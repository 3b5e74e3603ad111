"""What an index command asks for, as it was asked."""

from __future__ import annotations

from dataclasses import dataclass

from schema.errors import InputError
from schema.names import check_dataset, check_set

BAD_ROWS = ("stop", "skip")
LOGITS = ("auto", "yes", "no")


@dataclass(frozen=True)
class IndexConfig:
    """One `scopebase index`. Contradictions are refused here, before anything is read."""

    model: str
    """A hub id (`owner/name[@revision]`) or a directory."""
    sae: str
    """A release: a hub id, a directory, or one SAE file."""
    datasets: tuple[tuple[str, str], ...]
    """(name, source) of each dataset."""
    layers: str = "all"
    set_name: str | None = None
    """The set's name in SAE ids; made from the release's name unless given."""
    model_name: str | None = None
    text_field: str = "text"
    template: str | None = None
    id_field: str | None = None
    limit: int | None = None
    bad_rows: str = "stop"
    """`skip` leaves rows out that cannot be used, and reports them."""
    max_tokens: int = 512
    mask: str = "special,first"
    batch_tokens: int | None = None
    """Padded tokens a batch; chosen by the device unless given."""
    device: str = "auto"
    dtype: str = "auto"
    logits: str = "auto"
    """Whether each SAE's logit effects are made: `auto` leaves them out where a CPU would take long."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise InputError("name at least one dataset: --dataset NAME=SOURCE")
        names = [check_dataset(name) for name, _ in self.datasets]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"dataset {name!r} is given twice; each needs a name of its own")
        if self.set_name is not None:
            check_set(self.set_name)
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit {self.limit}: at least 1")
        if self.batch_tokens is not None and not 1 <= self.batch_tokens <= 1 << 22:
            raise InputError(f"--batch-tokens {self.batch_tokens}: from 1 to {1 << 22:,}")
        if self.logits not in LOGITS:
            raise InputError(f"--logits {self.logits!r}: {', '.join(LOGITS)}")
        if self.bad_rows not in BAD_ROWS:
            raise InputError(f"--bad-rows {self.bad_rows!r}: {' or '.join(BAD_ROWS)}")


@dataclass(frozen=True)
class Cluster:
    """Which machines share the work, and what each worker gets of them."""

    address: str | None = None
    """Of a Ray cluster: `auto`, `host:port` or `ray://host:port`; None starts Ray on this machine."""
    workers: int | None = None
    """None: as many as there is room for, more when machines come."""
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None
    layers_per_worker: int | None = None
    """SAEs of so many layers are held at once; None: of all layers."""

    def __post_init__(self) -> None:
        if self.cpus_per_worker is not None and self.cpus_per_worker < 1:
            raise InputError(f"--cpus-per-worker {self.cpus_per_worker}: at least 1")
        if self.gpus_per_worker is not None and not 0 <= self.gpus_per_worker <= 1:
            raise InputError(f"--gpus-per-worker {self.gpus_per_worker}: 0, 1, or a part of one like 0.5")
        if self.layers_per_worker is not None and self.layers_per_worker < 1:
            raise InputError(f"--layers-per-worker {self.layers_per_worker}: at least 1")


def parse_dataset_option(text: str) -> tuple[str, str]:
    """`NAME=SOURCE` in its parts."""
    name, sign, source = text.partition("=")
    if not sign or not name or not source:
        raise InputError(f"--dataset {text!r}: write NAME=SOURCE, like gsm8k=gsm8k.jsonl")
    return name, source
