"""Reading samples by number."""

from __future__ import annotations

import os
from pathlib import Path

from muco.core.errors import DataError
from muco.core.sample import Sample
from muco.data.format import from_members, parse_tar
from muco.data.index import ShardIndex, read_index


class ShardReader:
    """Any sample of a folder of shards, by its number in the index; picklable, for data workers."""

    def __init__(self, folder: Path) -> None:
        self.index: ShardIndex = read_index(folder)
        self._files: dict[int, int] = {}
        self._owner = os.getpid()

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.index.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["folder"])

    def name(self, number: int) -> str:
        """Return where a sample lies, in words: `shard-000002.tar:000012345`."""
        row = self.index.rows[number]
        return f"{self.index.shards[row['shard']].file}:{row['key']:09d}"

    def __getitem__(self, number: int) -> Sample:
        """Read one sample; its images stay encoded.

        Raises:
            DataError: it cannot be read; the message says where it lies.
        """
        try:
            return from_members(self._members(number), fetch=self._elsewhere)
        except (DataError, OSError) as error:
            raise DataError(f"{self.index.folder}/{self.name(number)}: {error}") from error

    def _members(self, number: int) -> dict[str, bytes]:
        row = self.index.rows[number]
        size = int(row["size"])
        data = os.pread(self._file(int(row["shard"])), size, int(row["offset"]))
        if len(data) != size:
            raise DataError(f"cut short: {len(data)} of {size} bytes")
        return parse_tar(data, key=f"{row['key']:09d}")

    def _elsewhere(self, name: str) -> bytes:
        """Return an image that another sample holds: `000000003.0.jpg`."""
        key, _, suffix = name.partition(".")
        if not key.isdecimal() or int(key) >= len(self):
            raise KeyError(name)
        return self._members(int(key))[suffix]

    def _file(self, shard: int) -> int:
        """Return the shard's descriptor, opened in this process."""
        if self._owner != os.getpid():
            self._files, self._owner = {}, os.getpid()
        if shard not in self._files:
            path = self.index.folder / self.index.shards[shard].file
            self._files[shard] = os.open(path, os.O_RDONLY)
        return self._files[shard]
