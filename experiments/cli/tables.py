"""Aligned tables, by rich: fitted to a terminal, plain lines of any length elsewhere."""

import functools
import io
import sys
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table

Parts = Sequence[RenderableType]  # tables and lines of text
_ANY_LENGTH = 100_000  # columns
_console = functools.partial(Console, markup=False, emoji=False, highlight=False)  # text as it is


def aligned(
    rows: Sequence[Sequence[str]], left: int | None = None, indent: int = 0
) -> RenderableType:
    """Returns rows as columns of equal width, headings first.

    Args:
      rows: may be shorter than the headings.
      left: how many columns stand at their left edge, the others at their right; None: all.
      indent: spaces before each row.
    """
    headings, *others = rows
    table = Table(box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        is_left = left is None or place < left
        table.add_column(heading, justify="left" if is_left else "right", overflow="fold")
    for row in others:
        table.add_row(*row)
    return Padding.indent(table, indent)


def plain(parts: Parts) -> str:
    """Returns tables and text as lines that nothing wraps or styles."""
    out = io.StringIO()
    _console(file=out, width=_ANY_LENGTH, force_terminal=False).print(Group(*parts))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def show(parts: Parts) -> None:
    """Prints tables and text on stdout."""
    if sys.stdout.isatty():
        _console().print(Group(*parts))
    else:
        print(plain(parts))
