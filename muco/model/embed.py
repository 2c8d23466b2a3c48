"""Embed dialogues in chunks of similar length; nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from muco.core.backbone import Cost, Processor, Rendered
from muco.core.dialogue import Dialogue
from muco.core.encoder import TurnEncoder
from muco.core.errors import DataError
from muco.core.turns import EncoderInputs
from muco.model.batching import plan_chunks


@torch.inference_mode()
def embed(
    encoder: TurnEncoder, dialogues: Sequence[Dialogue], *, batch_tokens: int
) -> tuple[dict[int, Tensor], dict[int, DataError]]:
    """Return the vectors of each dialogue's turns, and why the other dialogues cannot be encoded.

    Args:
        encoder: the model, on its device, in evaluation mode.
        dialogues: to encode.
        batch_tokens: language-model tokens, and image patches, that are encoded at once.

    Returns:
        Both by the index of the dialogue: vectors float32 [its turns, D], unit length, on the CPU; errors of
        broken images and of dialogues longer than the model's context.
    """
    device = next(encoder.parameters()).device
    processor = encoder.backbone.processor
    budget = Cost(tokens=batch_tokens, patches=batch_tokens)
    faults: dict[int, DataError] = {}
    rendered: dict[int, Rendered] = {}
    for index, dialogue in enumerate(dialogues):
        try:
            rendered[index] = processor.render(dialogue)
        except DataError as error:
            faults[index] = error
    vectors: dict[int, Tensor] = {}
    order = list(rendered)
    for chunk in plan_chunks([each.cost for each in rendered.values()], budget, padded=processor.padded):
        inputs, indices = _collate(processor, {order[row]: rendered[order[row]] for row in chunk}, faults)
        if inputs is not None:
            made = encoder(inputs.to(device)).vectors.float().cpu()
            sizes = [len(dialogues[index].turns) for index in indices]
            vectors.update(zip(indices, made.split(sizes), strict=True))
    return vectors, faults


def _collate(
    processor: Processor, rendered: Mapping[int, Rendered], faults: dict[int, DataError]
) -> tuple[EncoderInputs | None, list[int]]:
    """Return one chunk and the indices in it; dialogues that cannot be collated go to `faults`."""
    try:
        return processor.collate(list(rendered.values())), list(rendered)
    except DataError:
        for index, each in rendered.items():
            try:
                processor.collate([each])
            except DataError as error:
                faults[index] = error
    good = {index: each for index, each in rendered.items() if index not in faults}
    return (processor.collate(list(good.values())) if good else None), list(good)
