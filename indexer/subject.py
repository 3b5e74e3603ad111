"""The model under study: found, described, loaded, and read block by block.

The residual stream after block n is what block n returns. `hidden_states` of the last layer is not used anywhere: it is normalised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import logging as transformers_logging

from indexer.logits import Head, find_head
from indexer.tokens import Tokenizer, load_tokenizer
from schema.errors import InputError, WorkFailed
from schema.names import model_slug
from schema.records import ModelCard

Tap = Callable[[Tensor], None]
"""Takes the residual stream (batch, n_tokens, d_model) after a block."""

NOT_PLAIN = {"qwen4_exp": "its gated residual is no plain residual stream"}
_DESCRIPTION = ["*.json", "*.model", "*.txt", "*.jinja", "tokenizer*"]
_SAMPLE = 1 << 20


class Described:
    """A model as its small files tell it: enough to refuse what does not fit before the weights are read."""

    def __init__(self, source: str, name: str | None = None) -> None:
        self.source = source
        self.folder, commit = _locate(source)
        self.config = _config(self.folder, source)
        self.tokenizer: Tokenizer = load_tokenizer(self.folder, source, int(self.config.get_text_config().vocab_size))
        text = self.config.get_text_config()
        if text.model_type in NOT_PLAIN:
            raise InputError(f"model {source}: {NOT_PLAIN[text.model_type]}; SAEs on it are not read")
        self.card = ModelCard(
            name=model_slug(name or source.partition("@")[0]),
            source=source,
            revision=commit or _fingerprint(self.folder),
            family=str(text.model_type),
            n_layers=int(text.num_hidden_layers),
            d_model=int(text.hidden_size),
            context=getattr(text, "max_position_embeddings", None),
            tokenizer_sha256=self.tokenizer.sha256,
        )

    def weights(self) -> Path:
        """The directory with the weights too, fetched if need be.

        Raises:
            InputError: they cannot be fetched.
        """
        if Path(self.source).expanduser().exists():
            return self.folder
        # the commit that was described, whatever was pushed since
        return _download(f"{self.source.partition('@')[0]}@{self.folder.name}", weights=True)

    def load(
        self, deepest: int, device: torch.device, dtype: torch.dtype, *, head: bool = False, whole: bool = False
    ) -> Subject:
        """The model with its blocks up to the deepest one that is read.

        Args:
            head: keep what comes after the last block, for `Subject.head`.
            whole: keep all of it, for `Subject.model`.

        Raises:
            InputError: the weights are missing or do not fit the configuration.
        """
        transformers_logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.weights(), dtype=dtype, trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"model {self.source} cannot be loaded: {str(error).splitlines()[0][:200]}") from error
        decoder, blocks = find_blocks(model)
        if len(blocks) != self.card.n_layers:
            raise InputError(
                f"model {self.source} has {len(blocks)} blocks, but its config.json says {self.card.n_layers}"
            )
        outer = partial(find_head, model, decoder, len(self.tokenizer)) if head else None
        if whole:
            return Subject(decoder, blocks, len(blocks) - 1, device, outer, model)
        return Subject(decoder, blocks, deepest, device, outer)


def find_blocks(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder and its blocks, wherever a family keeps them.

    `model.layers`, `model.language_model.layers`, `transformer.h`, `gpt_neox.layers`, ...

    Raises:
        InputError: no list of blocks was found.
    """
    inner: Any = getattr(model, "base_model", model)
    for step in ("language_model", "text_model", "decoder"):
        inner = getattr(inner, step, inner)
    for name in ("layers", "h", "blocks"):
        blocks = getattr(inner, name, None)
        if isinstance(blocks, nn.ModuleList):
            return inner, blocks
    raise InputError(
        f"{type(model).__name__} keeps its blocks where Scopebase does not look; please report this architecture"
    )


class _Left(Exception):
    """Raised after the deepest block that is read, to leave the model there."""


class Subject:
    """A loaded model whose residual stream can be read. One thread owns it; its hooks are set once and only their table changes."""

    def __init__(
        self,
        decoder: nn.Module,
        blocks: nn.ModuleList,
        deepest: int,
        device: torch.device,
        head: Callable[[], Head] | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.device = device
        self.deepest = deepest
        self.blocks = blocks
        self._model = model
        self._head = head
        self._taps: Mapping[int, Tap] = {}
        for layer, block in enumerate(blocks):
            if layer <= deepest:
                block.register_forward_hook(self._hook(layer))
            else:
                blocks[layer] = nn.Identity()  # never reached: give its memory back
        self._decoder = decoder.to(device).eval()
        if model is not None:
            model.to(device).eval()

    @property
    def model(self) -> Any:
        """The whole model, from token ids to logits."""
        assert self._model is not None, "the model was loaded up to its last block that is read"
        return self._model

    @property
    def d_model(self) -> int:
        config: Any = self._decoder.config
        return int(config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        """Token ids that it has an embedding of."""
        config: Any = self._decoder.config
        return int(config.get_text_config().vocab_size)

    def head(self) -> Head:
        """Final norm and unembedding.

        Raises:
            InputError: see `indexer.logits.find_head`.
        """
        assert self._head is not None, "the model was loaded without its head"
        return self._head()

    def _hook(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
            tap = self._taps.get(layer)
            if tap is not None:
                tap(output[0] if isinstance(output, tuple) else output)
            if self._taps and layer == max(self._taps):
                raise _Left

        return hook

    @torch.inference_mode()
    def read(self, ids: Tensor, taps: Mapping[int, Tap]) -> None:
        """Runs the model over token ids (batch, n_tokens), padded on the right, and hands each tapped block's output over.

        No attention mask is needed: attention and recurrence only look back, so that no real token ever sees the padding.

        Raises:
            WorkFailed: the device ran out of memory.
        """
        self._taps = taps
        try:
            self._decoder(input_ids=ids.to(self.device), use_cache=False)
        except _Left:
            return
        except torch.OutOfMemoryError as error:
            raise WorkFailed(
                f"{self.device} has too little memory for {ids.numel():,} tokens at once; lower --batch-tokens"
            ) from error
        finally:
            self._taps = {}


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {name!r} cannot be used: {str(error).splitlines()[0]}; 'auto' or 'cpu' always can"
        ) from error
    return device


def choose_dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    """`auto` is float32 on a CPU, and on a GPU what the weights were saved in."""
    if name != "auto":
        known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if name not in known:
            raise InputError(f"--dtype {name!r}: auto, {', '.join(known)}")
        return known[name]
    saved = config.get_text_config().dtype or config.dtype
    return saved if device.type != "cpu" and isinstance(saved, torch.dtype) else torch.float32


def _locate(source: str) -> tuple[Path, str | None]:
    """The directory of a model's small files, and its commit if it is on the hub."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path, None
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise InputError(f"there is no model directory {source!r}, and it is no hub id (owner/name)")
    folder = _download(source, weights=False)
    return folder, folder.name


def _download(source: str, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = source.partition("@")
    patterns = [*_DESCRIPTION, "*.safetensors"] if weights else _DESCRIPTION
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the library raises its own, httpx's and the operating system's
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise InputError(
            f"model {source} cannot be fetched from the hub: {type(error).__name__}: {reason}; "
            "check its name and the network, or give a local directory"
        ) from error


def _config(folder: Path, source: str) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        if not (folder / "config.json").exists():
            raise InputError(f"model directory {source} has no config.json") from None
        if "custom code" in str(error):
            reason = "it brings code of its own, which Scopebase does not run; take a model of a family that transformers has"
        else:
            reason = str(error).splitlines()[0][:200]
        raise InputError(f"config.json of model {source} cannot be read: {reason}") from error


def _fingerprint(folder: Path) -> str:
    """SHA-256 over a directory's configuration and weights. Of files beyond 1 GiB only the ends and 64 blocks between are read:
    training moves every weight, so that other weights differ in any block."""
    digest = hashlib.sha256()
    files = sorted(file for pattern in ("config.json", "*.safetensors", "*.bin") for file in folder.glob(pattern))
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as handle:
            if size <= 1 << 30:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
                continue
            for i in range(66):
                handle.seek((size - _SAMPLE) * i // 65)
                digest.update(handle.read(_SAMPLE))
    return digest.hexdigest()
