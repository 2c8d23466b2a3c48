"""Contract checks: the first test of a component, in muco and in plugin packages."""

from muco.testing.contracts import (
    check_loss,
    check_packer,
    check_pooler,
    check_sampler,
    check_source,
    check_suite,
)
from muco.testing.encoding import check_backbone

__all__ = [
    "check_backbone",
    "check_loss",
    "check_packer",
    "check_pooler",
    "check_sampler",
    "check_source",
    "check_suite",
]
