"""A table without lines that fits into the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

LEAST_WIDTH = 8
"""Smallest width of a column whose words may be cut."""


class Grid:
    """A table without lines that drops columns where there is no room.

    Args:
        columns: Heads and forms: `>` puts a column right, `~` lets its words be cut, `?` lets it be
            left out, the last such one first.
    """

    def __init__(self, *columns: tuple[str, str]) -> None:
        self._columns = columns
        self._rows: list[tuple[list[Text], str]] = []

    @property
    def row_count(self) -> int:
        """The number of lines below the head."""
        return len(self._rows)

    def add_row(self, *cells: Text, style: str = "") -> None:
        """Append a row."""
        self._rows.append((list(cells), style))

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table, as wide as the terminal."""
        shown_ones = list(range(len(self._columns)))
        optional = [i for i in shown_ones if "?" in self._columns[i][1]]
        while optional and self._least_width(shown_ones) > options.max_width:
            shown_ones.remove(optional.pop())
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for head, form in (self._columns[i] for i in shown_ones):
            cut = "~" in form
            table.add_column(
                head,
                justify="right" if ">" in form else "left",
                no_wrap=not cut,  # rich makes only the others narrower
                min_width=LEAST_WIDTH if cut else len(head),
            )
        for cells, style in self._rows:
            table.add_row(*(cells[i] for i in shown_ones), style=style)
        yield table

    def _least_width(self, shown_ones: Sequence[int]) -> int:
        widths = (
            LEAST_WIDTH
            if "~" in self._columns[i][1]
            else max(len(self._columns[i][0]), *(cells[i].cell_len for cells, _ in self._rows), 0)
            for i in shown_ones
        )
        return sum(widths) + 2 * (len(shown_ones) - 1)
