"""What a run and its servers have to agree on: the lease, and what a server says of itself and of its model, so that a
run can tell that it is the right one."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

from rlkit import distribution

OWNER = "x-rlkit-owner"
"""Header that names the holder of a server's lease."""
LEASE_S = 60.0
"""After its last renewal, a lease is anybody's."""

_SHAPE = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings"),
)
_READ = 2**16


def facts(vllm_config: Any) -> dict[str, Any]:
    """Of a server, as JSON: `vllm_config` is vLLM's VllmConfig."""
    model, parallel, transfer = (
        vllm_config.model_config,
        vllm_config.parallel_config,
        vllm_config.weight_transfer_config,
    )
    return {
        "rlkit": metadata.version(distribution.NAME),
        "model": model.model,
        "shape": shape(model.hf_text_config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "context": model.max_model_len,
        "logprobs": getattr(model.logprobs_mode, "value", model.logprobs_mode),
        "transfer": transfer.backend if transfer is not None else None,
        "workers": parallel.world_size_across_dp,
        "files": fingerprint(model.model),
    }


def shape(config: Any) -> dict[str, Any]:
    """What of a model's (text) config decides the shapes of its weights."""
    return {name: getattr(config, name, None) for name in _SHAPE}


def fingerprint(path: str) -> str | None:
    """Of the weights in a model's folder, from the names and sizes of their files, and the beginning and end of each;
    None for what is no folder here."""
    folder = Path(path)
    if not folder.is_dir():
        return None
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        found.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            found.update(content.read(_READ))
            content.seek(max(0, size - _READ))
            found.update(content.read(_READ))
    return found.hexdigest()
