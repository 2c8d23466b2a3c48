"""What the seven kinds of component share: a `Config`, and the features they offer and need."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from muco.core.errors import PluginError

Kind = Literal["source", "sampler", "packer", "backbone", "pooler", "loss", "suite"]

KINDS: tuple[Kind, ...] = ("source", "sampler", "packer", "backbone", "pooler", "loss", "suite")
"""The kinds in the order in which a batch passes through them."""

Feature = Literal["causal_context", "isolated_turns", "image_targets", "video", "independent_targets"]
"""A feature that one component of a recipe offers and another needs.

causal_context: the backbone lets a turn see the earlier turns of its dialogue.
isolated_turns: the backbone encodes turns that see only the shared prefix and themselves.
image_targets: the backbone encodes targets that contain images.
video: the backbone reads videos, as frames.
independent_targets: the packer puts each target into a dialogue of its own.
"""


class ComponentConfig(BaseModel):
    """Base of a component's settings. Frozen; unknown keys are errors; fields have docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Component:
    """Base of the seven interfaces. A concrete class defines `Config` and is built from one."""

    kind: ClassVar[Kind]
    Config: ClassVar[type[ComponentConfig]]

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        """Return the features that a component with these settings offers to the others of a recipe."""
        return frozenset()

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        """Return the features that other components of a recipe must offer."""
        return frozenset()

    def contract_error(self, problem: str) -> PluginError:
        """Return the error of a component that breaks its contract, with its name and package."""
        cls = type(self)
        package = cls.__module__.partition(".")[0]
        return PluginError(
            f"{cls.kind} {cls.__name__} of package {package} {problem}. The package must be fixed; "
            f"`muco.testing.check_{cls.kind}` checks it."
        )
