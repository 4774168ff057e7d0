"""HTML templates of pages that make no network requests."""

import pathlib

import jinja2


def templates(folder: pathlib.Path) -> jinja2.Environment:
    """Returns the templates in a folder; an undefined name is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
