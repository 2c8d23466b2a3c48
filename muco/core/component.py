"""What all seven kinds of component have in common: a name, a `Config`, and what fits with what."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["source", "sampler", "packer", "backbone", "pooler", "loss", "suite"]

KINDS: tuple[Kind, ...] = ("source", "sampler", "packer", "backbone", "pooler", "loss", "suite")
"""The kinds in the order in which a batch meets them."""

Feature = Literal["causal_context", "isolated_turns", "image_targets", "video", "independent_targets"]
"""What one component of a recipe may need and another offer.

causal_context: the backbone lets a turn see the earlier turns of its dialogue.
isolated_turns: the backbone encodes turns that see the shared prefix and themselves only.
image_targets: the backbone encodes targets that hold images.
video: the backbone reads videos, as frames.
independent_targets: the packer gives each target a dialogue of its own.
"""


class ComponentConfig(BaseModel):
    """A component's settings: frozen, unknown keys rejected, fields documented by docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Component:
    """The base of the interfaces; a concrete class brings a `Config` and is built from one."""

    kind: ClassVar[Kind]
    Config: ClassVar[type[ComponentConfig]]

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        """Return what other components of the recipe may rely on, from the settings alone."""
        return frozenset()

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        """Return what another component of the recipe must offer, from the settings alone."""
        return frozenset()
