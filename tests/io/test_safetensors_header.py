from __future__ import annotations

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from muco.io.safetensors_header import read_header, sort_header


def test_equal_content_gives_equal_bytes(tmp_path):
    """safetensors writes metadata in random order; among 20 files of five keys, two differ."""
    metadata = {"é": "ü\n", "b": '{"a": 1}', "a": "x", "d": "", "c": "y"}
    paths = [tmp_path / f"{number}.safetensors" for number in range(20)]
    for path in paths:
        save_file({"w": np.arange(3.0), "v": np.ones(2)}, path, metadata=metadata)
        sort_header(path)
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], framework="np") as file:
        assert file.metadata() == metadata
        assert file.get_tensor("w").tolist() == [0, 1, 2]
    with open(paths[0], "rb") as file:
        assert list(read_header(file)["__metadata__"]) == sorted(metadata)
