"""Tables of the commands. Texts that do not fit a column continue on its next line; nothing is cut off."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernels.names import printable

WIDE = 150  # width of a table in characters when the output is not a terminal


def new_table(*headers: str, **look: Any) -> Table:
    """A table with a column for each of `headers`. `look` are arguments of rich's Table."""
    table = Table(**look)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def print_table(table: Table, console: Console) -> None:
    """Print a table as wide as the terminal, or up to WIDE characters wide to a file or pipe."""
    if not console.is_terminal:
        console.width = max(WIDE, console.width)
    console.print(table)


def plain(text: object) -> Text:
    """A text that was read from a file, as a table cell without markup and control characters."""
    return Text(printable(str(text)))
