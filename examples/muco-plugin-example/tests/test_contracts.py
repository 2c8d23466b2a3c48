"""The contract checks of muco for any pooler and any loss."""

from muco.core import default_registry
from muco.testing import check_loss, check_pooler


def test_the_pooler_keeps_the_contract():
    check_pooler(default_registry(), "weighted_mean", {})


def test_the_loss_keeps_the_contract():
    check_loss(default_registry(), "triplet", {"margin": 0.1})


def test_the_components_are_this_packages():
    providers = {entry.name: entry.provider for entry in default_registry()}
    assert providers["triplet"] == providers["weighted_mean"] == "muco-plugin-example 0.1.0"
