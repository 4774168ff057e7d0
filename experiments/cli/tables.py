"""Aligned tables, printed by rich: fitted to a terminal, unwrapped plain text elsewhere."""

import functools
import io
import sys
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table

Parts = Sequence[RenderableType]  # tables and lines of text
_ANY_LENGTH = 100_000  # columns
_console = functools.partial(Console, markup=False, emoji=False, highlight=False)  # no markup


def aligned(
    rows: Sequence[Sequence[str]], left: int | None = None, indent: int = 0
) -> RenderableType:
    """Returns rows as a table with aligned columns.

    Args:
      rows: the headings, then rows, which may be shorter.
      left: the number of left-aligned columns; the others are right-aligned. None: all.
      indent: spaces before each row.
    """
    headings, *body = rows
    table = Table(box=None, pad_edge=False)
    for column, heading in enumerate(headings):
        is_left = left is None or column < left
        table.add_column(heading, justify="left" if is_left else "right", overflow="fold")
    for row in body:
        table.add_row(*row)
    return Padding.indent(table, indent)


def plain(parts: Parts) -> str:
    """Returns tables and text without wrapping or styles."""
    out = io.StringIO()
    _console(file=out, width=_ANY_LENGTH, force_terminal=False).print(Group(*parts))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def print_parts(parts: Parts) -> None:
    """Prints tables and text on stdout."""
    if sys.stdout.isatty():
        _console().print(Group(*parts))
    else:
        print(plain(parts))
