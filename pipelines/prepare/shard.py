"""A part of the clips of a table, so that the jobs of an array can pack one data set on many machines."""

import re
from dataclasses import dataclass

from kernels.program import UserError


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard number `index`, counted from 0, of `count` shards that have no clip in common and together all clips."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that a text such as "0/16" names. Raises UserError if it names none."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None:
            raise UserError(f"--shard {text} is not of the form I/N; the first of 16 shards is --shard 0/16")
        index, count = (int(number) for number in match.groups())
        if index >= count:
            last = f"--shard 0/{count} to --shard {count - 1}/{count}" if count else "--shard 0/N to --shard N-1/N"
            raise UserError(f"--shard {text} does not exist: shards are counted from 0, so choose one of {last}")
        return cls(index, count)

    def rows(self, total: int) -> range:
        """The rows of this shard in a table of `total` rows: every `count`-th row."""
        return range(self.index, total, self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
