"""How readers of weight files refuse a file; files.py adds its path and ends the sentence."""

import pathlib

_EXPANSION = 100  # weights hardly compress; 1000 is a file that was made to fill the memory
_FREE = 1 << 30  # bytes that any file may hold, such as a fresh network's zeros
_SHOWN = 120  # characters of a file's text that a sentence repeats


class Refusal(Exception):  # noqa: N818 - it is not always an error of the file
    """A file cannot be read; the message continues the file's path and has no full stop."""


def shown(text: object) -> str:
    """Returns text of a file in one line, short and printable."""
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[:_SHOWN])
    return escaped + ("..." if len(str(text)) > _SHOWN else "")


def reason(error: BaseException) -> str:
    """Returns what a library says of a damaged file, in one line."""
    first = str(error).strip().split("\n")[0].rstrip(".")
    name = type(error).__name__
    # A KeyError's message is only the key.
    return shown(first) if first and not isinstance(error, KeyError) else name


def check_expansion(path: pathlib.Path, content: int) -> None:
    """Raises Refusal if a compressed file declares far more bytes than weights would have."""
    size = path.stat().st_size
    limit = _FREE + _EXPANSION * size
    if content > limit:
        raise Refusal(
            f"declares {content:,} bytes in a file of {size:,}; allowed are {limit:,} bytes"
        )
