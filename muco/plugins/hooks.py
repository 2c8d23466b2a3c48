"""muco's own components, declared by the same hooks as anyone's."""

from __future__ import annotations

from collections.abc import Mapping

from muco.core.hookspecs import hookimpl

muco_contract = 2


@hookimpl
def muco_sources() -> Mapping[str, str]:
    return {
        "m3t": "muco.plugins.datasets.m3t.source:M3T",
        "mbeir": "muco.plugins.datasets.mbeir.source:MBEIR",
        "mmeb": "muco.plugins.datasets.mmeb.source:MMEB",
        "pairs": "muco.plugins.datasets.pairs.source:Pairs",
        "scenes": "muco.plugins.datasets.scenes.source:Scenes",
    }


@hookimpl
def muco_samplers() -> Mapping[str, str]:
    return {
        "mined": "muco.plugins.samplers.mined:Mined",
        "mixture": "muco.plugins.samplers.mixture:Mixture",
        "task_homogeneous": "muco.plugins.samplers.task_homogeneous:TaskHomogeneous",
    }


@hookimpl
def muco_packers() -> Mapping[str, str]:
    return {
        "multi_turn": "muco.plugins.packers.multi_turn:MultiTurn",
        "reconstruction": "muco.plugins.packers.reconstruction:Reconstruction",
        "single_turn": "muco.plugins.packers.single_turn:SingleTurn",
    }


@hookimpl
def muco_backbones() -> Mapping[str, str]:
    return {
        "clip": "muco.plugins.backbones.clip:Clip",
        "idefics": "muco.plugins.backbones.idefics:Idefics",
        "llava": "muco.plugins.backbones.llava:Llava",
        "qwen_vl": "muco.plugins.backbones.qwen_vl:QwenVL",
    }


@hookimpl
def muco_poolers() -> Mapping[str, str]:
    return {
        "last_token": "muco.plugins.poolers.last_token:LastToken",
        "mean": "muco.plugins.poolers.mean:Mean",
        "turn_token": "muco.plugins.poolers.turn_token:TurnToken",
    }


@hookimpl
def muco_losses() -> Mapping[str, str]:
    return {
        "hardness_weighted": "muco.plugins.losses.hardness_weighted:HardnessWeighted",
        "infonce": "muco.plugins.losses.infonce:InfoNCE",
        "matryoshka": "muco.plugins.losses.matryoshka:Matryoshka",
        "multiturn_infonce": "muco.plugins.losses.multiturn_infonce:MultiTurnInfoNCE",
        "siglip": "muco.plugins.losses.siglip:SigLIP",
    }


@hookimpl
def muco_suites() -> Mapping[str, str]:
    return {
        "mbeir": "muco.plugins.datasets.mbeir.suite:MBEIR",
        "mmeb": "muco.plugins.datasets.mmeb.suite:MMEB",
        "pairs": "muco.plugins.datasets.pairs.suite:PairsSuite",
        "mteb": "muco.plugins.datasets.mteb.suite:Mteb",
        "scenes": "muco.plugins.datasets.scenes.suite:ScenesSuite",
    }
