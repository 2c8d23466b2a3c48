"""What this package adds to muco."""

from collections.abc import Mapping

from muco.core import hookimpl

muco_contract = 2


@hookimpl
def muco_poolers() -> Mapping[str, str]:
    """Declare the pooler."""
    return {"weighted_mean": "muco_plugin_example.pooler:WeightedMean"}


@hookimpl
def muco_losses() -> Mapping[str, str]:
    """Declare the loss."""
    return {"triplet": "muco_plugin_example.loss:Triplet"}
