"""The files of an exported folder that sentence-transformers and vLLM read beside the model's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from muco.core.exported import Exported

_TYPE = "sentence_transformers.models."
"""These names of the modules work in versions 3 to 6, and vLLM compares them letter by letter."""


def write_modules(
    folder: Path, exported: Exported, projection: nn.Linear | None, *, hidden_dim: int
) -> str | None:
    """Write the modules after the model: pooling, projection and normalization.

    `hidden_dim` is the size of the model's states. Return the projection's folder in the model's; None
    without one.
    """
    names = ["Transformer"]
    if exported.pools_last_token:
        names.append("Pooling")
    if projection is not None:
        names.append("Dense")
    names.append("Normalize")
    paths = {name: "" if index == 0 else f"{index}_{name}" for index, name in enumerate(names)}
    for path in paths.values():
        (folder / path).mkdir(exist_ok=True)
    modules = [
        {"idx": index, "name": str(index), "path": paths[name], "type": _TYPE + name}
        for index, name in enumerate(names)
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", _transformer(exported))
    _write(folder / "config_sentence_transformers.json", _CONFIG)
    _write(folder / paths["Normalize"] / "config.json", {})
    if exported.pools_last_token:
        pooling = {"embedding_dimension": hidden_dim, "pooling_mode": "lasttoken", "include_prompt": True}
        _write(folder / paths["Pooling"] / "config.json", pooling)
    if projection is not None:
        _write_dense(folder / paths["Dense"], projection)
    return paths.get("Dense")


_CONFIG = {
    "model_type": "SentenceTransformer",
    # A prompt would become the system text. An instruction belongs into the text of the user.
    "prompts": {},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}


def _transformer(exported: Exported) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        kind: {"method": method, "method_output_name": field}
        for kind, (method, field) in exported.methods.items()
    }
    settings: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        "modality_config": kinds,
        "module_output_name": "token_embeddings" if exported.pools_last_token else "sentence_embedding",
    }
    if "message" in kinds:
        kinds["message"]["format"] = "structured"
    if exported.sanitizes:
        settings["processing_kwargs"] = {"chat_template": {"sanitize_control_tokens": True}}
    return settings


def _write_dense(folder: Path, projection: nn.Linear) -> None:
    settings = {
        "in_features": projection.in_features,
        "out_features": projection.out_features,
        "bias": projection.bias is not None,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write(folder / "config.json", settings)
    weights = {f"linear.{name}": weight.contiguous() for name, weight in projection.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write(path: Path, values: Mapping[str, Any] | list[Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
