"""Load checkpoints; a missing or unexpected weight is an error. No code of a checkpoint is run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from muco.core.errors import DataError, MucoError, library_errors
from muco.io.checkpoint_name import is_missing_path
from muco.io.untrusted import refuse_special_files
from muco.plugins.backbones.decoder.chat import EMB, MASK

Dtype = Literal["float32", "bfloat16"]

_UNUSED_WEIGHTS = ("lm_head.", "language_model.lm_head.")
"""The language-model head, in the current layout and in LLaVA's first one; an embedder has no head."""
PEFT_FILE = "adapter_config.json"
"""Where peft describes adapters. transformers adds them to the model unasked."""


def dtype_of(name: Dtype) -> torch.dtype:
    """Return the dtype of torch with that name."""
    return getattr(torch, name)


def load_model(name: str, dtype: Dtype, *, backbone: str, families: Sequence[str]) -> Any:
    """Return the transformers model of a checkpoint, a folder or hub name, without its head.

    `backbone` names the backbone in messages, and `families` are the `model_type`s that it supports. Raise
    MucoError for no such checkpoint, one of another family, or one with adapters of peft, DataError if a
    weight is missing, unexpected or of another shape.
    """
    from transformers import AutoConfig
    from transformers.utils.hub import has_file

    refuse_missing(name)
    with library_errors(f"backbone.pretrained: {name} cannot be loaded"):
        if has_file(name, PEFT_FILE):
            raise adapters_of_peft(name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        family = config.model_type
        if family not in families:
            raise MucoError(f"{name} is a {family} model; {backbone} loads {', '.join(families)}")
        model, report = _read_model(name, config, dtype_of(dtype))
    _refuse(
        {
            "missing": _used(report["missing_keys"]),
            "unexpected": _used(report["unexpected_keys"]),
            "of another shape": map(str, report["mismatched_keys"]),
        },
        f"{name}: the weights do not fit a {family} model",
    )
    return model


def local_sizes(name: str) -> dict[str, Any] | None:
    """Return the configuration of a checkpoint as plain data, defaults filled in; None if it is no folder.

    Raise MucoError if the folder has no configuration that transformers reads.
    """
    folder = Path(expanduser(name))
    if not folder.is_dir():
        return None
    refuse_special_files(folder)
    from transformers import AutoConfig

    with library_errors(f"backbone.pretrained: {name} cannot be loaded"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()


def refuse_missing(name: str) -> None:
    """Raise MucoError if no folder has that name, and the hub does not have it or cannot be reached.

    The hub is queried once, because transformers queries it for each file and retries for half a minute.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    path = Path(expanduser(name))
    if path.is_dir():
        refuse_special_files(path)
        return
    if path.exists() or is_missing_path(name):
        problem = "is not a folder" if path.exists() else "does not exist"
        raise MucoError(
            f"backbone.pretrained: {name} {problem}. Give a folder, or a name of the hub: owner/name"
        )
    hint = f"A folder is written ./{name} and must exist; a name of the hub needs a connection to it"
    with library_errors(f"backbone.pretrained: no folder {name} here, and not found on the hub. {hint}"):
        if try_to_load_from_cache(name, "config.json") is None:
            HfApi().model_info(name, timeout=10)


def adapters_of_peft(name: str) -> MucoError:
    """Return the error for a checkpoint with adapters in the layout of peft."""
    return MucoError(
        f"backbone.pretrained: {name} has {PEFT_FILE}: adapters of peft, which muco does not load. Merge "
        "them into the weights with peft (`merge_and_unload`) and save the model in another folder. If the "
        f"weights are merged already, remove {PEFT_FILE}."
    )


def _read_model(name: str, config: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the model without its head, and the report about its weights.

    transformers has a mapping for each older layout of a model with a head, but not for all of them if the
    head is left out. A checkpoint that was saved without a head is read without one.
    """
    from transformers import AutoModel, AutoModelForImageTextToText

    has_no_head = all(each.endswith("Model") for each in config.architectures or [""])
    cls: Any = AutoModel if has_no_head else AutoModelForImageTextToText
    # If the checkpoint has no head, transformers draws one; this must not change the run's random numbers.
    with torch.random.fork_rng(devices=[]):
        model, report = cls.from_pretrained(
            name, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    return model.base_model, report


def _used(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(_UNUSED_WEIGHTS)]


def load_tokenizer(name: str | Path) -> Any:
    """Return the tokenizer of a checkpoint, a folder or a hub name, in the transformers layout.

    Raise MucoError if it is missing or cannot be read.
    """
    from transformers import AutoTokenizer

    with library_errors(f"{name}: its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        is_empty = not tokenizer("a", add_special_tokens=False)["input_ids"]
    # If files are missing, some tokenizers of transformers load without a vocabulary.
    if is_empty:
        raise MucoError(f"{name}: its tokenizer encodes text to nothing; tokenizer.json is missing or empty")
    for key in ("is_local", "local_files_only"):
        # Else `save_pretrained` writes how the tokenizer was loaded.
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


def load_image_processor(cls: Any, name: str | Path, **settings: Any) -> Any:
    """Return the image processor of a checkpoint, with some settings replaced, by transformers' names.

    `cls` is its class in transformers. Raise MucoError if there is none, or a setting of the checkpoint
    overrules a replaced one.
    """
    settings = {"do_resize": True, **settings}
    with library_errors(f"backbone.pretrained: preprocessor_config.json of {name} cannot be read"):
        # A copy: transformers writes the checkpoint's settings into the one it gets.
        image_processor = cls.from_pretrained(name, **deepcopy(settings))
    for key, value in settings.items():
        actual = getattr(image_processor, key, value)  # some are only other names of others
        if _plain(actual) != _plain(value):
            raise MucoError(
                f"backbone.pretrained: {name}: its preprocessor_config.json makes {key} {actual} instead of "
                f"{value}; remove that setting from the file"
            )
    return image_processor


def _plain(value: Any) -> Any:
    """Return a setting in a form that can be compared: no type of transformers, lists for tuples."""
    return json.loads(json.dumps(value, default=dict))


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; raise MucoError if it cannot be read."""
    from safetensors.torch import load_file

    with library_errors(f"{file}: it cannot be read"):
        return load_file(file)


def check_fit(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    message: str,
    *,
    ignored: Collection[str] = (),
) -> None:
    """Raise DataError with the message unless both have the same names, but for `ignored`, and shapes."""
    both = weights.keys() & expected.keys()
    wrong = {
        "missing": expected.keys() - weights.keys(),
        "unexpected": weights.keys() - expected.keys(),
        "of another shape": {name for name in both if weights[name].shape != expected[name].shape},
    }
    _refuse({problem: names.difference(ignored) for problem, names in wrong.items()}, message)


def _refuse(wrong: Mapping[str, Iterable[str]], message: str) -> None:
    """Raise DataError if any name is wrong; the message has the first five of each problem."""
    problems = {problem: sorted(names) for problem, names in wrong.items()}
    details = [f"{problem}: {', '.join(names[:5])}" for problem, names in problems.items() if names]
    if details:
        raise DataError(f"{message}. {'; '.join(details)}")


def add_tokens(model: Any, tokenizer: Any, *, known: Sequence[str] = ()) -> None:
    """Add `<|emb|>` and `<|mask|>`; the embedding matrix grows only if it has too few spare rows.

    Those of the added tokens `known` that the tokenizer has become special, so that user text cannot produce
    them.
    """
    special = [token for token in known if token in tokenizer.get_added_vocab()]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [*special, EMB, MASK]}, replace_extra_special_tokens=False
    )
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
