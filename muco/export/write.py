"""Write a trained model as one folder for muco, transformers, sentence-transformers and vLLM."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from muco.core.dialogue import Dialogue, Message, Turn
from muco.core.errors import MucoError
from muco.core.exported import Exported
from muco.core.packer import Packer
from muco.core.sample import Content
from muco.export.check import Agreement, compare, own_vectors
from muco.export.model_card import write_model_card
from muco.export.probes import make_probes
from muco.export.readers import open_folder
from muco.export.sentence_transformers import write_modules
from muco.io.atomic import atomic_folder, write_errors
from muco.model.folder import LoadedModel, save_encoder, save_exported
from muco.model.source import ModelSource


def write_exported(source: ModelSource, to: Path, *, check: bool, license_id: str | None) -> list[Agreement]:
    """Write the model to a folder that appears when it is complete and checked.

    With `check`, return how near to muco's the vectors are that another tool computes, by batch. Raise
    MucoError if other tools cannot compute these vectors, the check failed, `to` exists, or the disk is full
    or not writable.
    """
    loaded = _load_merged(source, to)
    with write_errors(f"{to}: the model"), atomic_folder(to) as partial:
        exported, dense = _write(loaded, source, partial)
        write_model_card(partial, exported, source, loaded, name=to.name, dense=dense, license_id=license_id)
        return _checked(loaded, exported, partial) if check else []


def write_merged(source: ModelSource, to: Path) -> None:
    """Write the model as a run saves it, its adapters merged; errors as above."""
    loaded = _load_merged(source, to)
    settings = _without_adapters(source).evaluation("muco export").model
    with write_errors(f"{to}: the model"), atomic_folder(to) as partial:
        save_encoder(loaded.encoder, settings, partial, step=loaded.step, nested_dims=loaded.nested_dims)


def _load_merged(source: ModelSource, to: Path) -> LoadedModel:
    if to.exists():
        raise MucoError(f"{to} is there already; name another folder")
    loaded = source.load(source.evaluation(f"muco export {source.folder}").model)
    loaded.encoder.backbone.merge_adapters()
    return loaded


def _write(loaded: LoadedModel, source: ModelSource, folder: Path) -> tuple[Exported, str | None]:
    """Return what was written, and the folder of the projection in it."""
    encoder = loaded.encoder
    pooler = encoder.pooler.export()
    exported = encoder.backbone.export(folder, system=system_of(loaded.packer), pooled=pooler.pooled)
    dense = write_modules(folder, exported, pooler.projection, hidden_dim=encoder.backbone.hidden_dim)
    if loaded.nested_dims:
        _add_to_config(folder, matryoshka_dimensions=sorted(loaded.nested_dims))
    settings = _without_adapters(source).evaluation("muco export").model
    save_exported(encoder, settings, folder, step=loaded.step, nested_dims=loaded.nested_dims)
    return exported, dense


def system_of(packer: Packer) -> str:
    """Return the system text that a packer puts before a content; raise MucoError if it does more."""
    content = Content("a text")
    dialogue = packer.inference(content)
    plain = Dialogue(dialogue.system, (), (Turn((Message("user", content),), dialogue.turns[0].key),))
    if dialogue.content_key != plain.content_key:
        raise MucoError(
            f"packer {type(packer).__name__} cannot be exported: it changes a content before it is embedded, "
            "and other tools embed a content as it is"
        )
    return dialogue.system


def _without_adapters(source: ModelSource) -> ModelSource:
    backbone = source.values["backbone"]
    if "adapter" not in backbone:
        return source
    return replace(source, values={**source.values, "backbone": {**backbone, "adapter": None}})


def _add_to_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}, indent=2) + "\n")


def _checked(loaded: LoadedModel, exported: Exported, folder: Path) -> list[Agreement]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    probes = make_probes(set(exported.methods))
    expected = own_vectors(loaded.encoder.to(device), loaded.packer, probes)
    loaded.encoder.to("cpu")
    return compare(open_folder(folder, exported, device), probes, expected)
