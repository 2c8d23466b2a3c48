"""The README of an exported folder: what the model is, its data and scores, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muco import __version__
from muco.core.exported import Exported
from muco.io.templates import text_templates
from muco.model.folder import LoadedModel
from muco.model.source import ModelSource
from muco.report.read import RunFiles, read_run


def write_model_card(
    folder: Path,
    exported: Exported,
    source: ModelSource,
    loaded: LoadedModel,
    *,
    name: str,
    dense: str | None,
    license_id: str | None,
) -> None:
    """Write README.md of an exported folder; what is not known of a model, the card leaves open.

    Data and scores are those of the source's run. `name` is the title, `dense` the folder of the projection,
    and `license_id` that of the weights.
    """
    run = None if source.run is None else read_run(source.run)
    template = text_templates("export/templates").get_template("model_card.md")
    card = template.render(
        name=name,
        dense=dense,
        license_id=license_id,
        base_model=_base_model(source.values["backbone"]),
        settings=source.values,
        exported=exported,
        is_chat="message" in exported.methods,
        dim=loaded.encoder.pooler.embedding_dim,
        nested_dims=loaded.nested_dims,
        step=loaded.step,
        data=_data(run),
        run=run,
        version=__version__,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _base_model(backbone: dict[str, Any]) -> str | None:
    """Return the hub's name of the pretrained model; None for random weights and local folders."""
    name = (backbone.get("pretrained") or "").removeprefix("hf-hub:")
    is_hub_name = name.count("/") == 1 and name[0] not in "/.~" and not Path(name).exists()
    return name if is_hub_name else None


def _data(run: RunFiles | None) -> dict[str, str]:
    """Return where each training data set comes from, without folders of this machine."""
    sets = (run and run.recipe.data) or {}
    return {name: _origin(settings) for name, settings in sets.items()}


def _origin(settings: dict[str, Any]) -> str:
    source = settings.get("source")
    if isinstance(source, dict):
        return f"source `{source.get('name')}`"
    return "shards"
