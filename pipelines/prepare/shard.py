"""Divides the clips of a table into shards, so that jobs on many machines can pack one data set together."""

import re
from dataclasses import dataclass

from kernels.program import UserError


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shards; `index` is its number, counted from 0. Each clip belongs to exactly one shard."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parse a text such as "0/16". Raises UserError if the text does not name a shard."""
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
