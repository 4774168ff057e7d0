"""What a user did wrong, said in one sentence."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend; programs print its one sentence and exit with 2."""


class RunError(Exception):
    """A run that cannot go on (full disk, unreadable checkpoints); programs exit with 1."""


def sentence(error: BaseException) -> str:
    """Returns an error's first line; for one that nobody foresaw, that it is a bug, and its type.

    UserError and RunError are foreseen, and whatever is no Exception, such as KeyboardInterrupt;
    so is a package that is not installed, but not a module of ours that cannot be imported.
    """
    kind, said = type(error).__name__, str(error).split("\n")[0]
    if isinstance(error, UserError | RunError) or not isinstance(error, Exception):
        return said or kind
    if is_missing_package(error):
        return f"a package is missing or broken ({said}); install what requirements.txt names"
    return f"this is a bug in resnet_jax: {kind}{f': {said}' if said else ''}".rstrip(".")


def is_missing_package(error: BaseException) -> bool:
    """Whether a package that we need is not installed, or cannot be imported."""
    package = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    return package not in ("", "resnet_jax", "experiments", "configs")


def nearest(value: object, allowed: Iterable[object]) -> str:
    """Returns `` (nearest: X)`` for the allowed spelling closest to `value`, or nothing."""
    by_spelling = {str(a).lower(): str(a) for a in allowed}
    close = difflib.get_close_matches(str(value).lower(), by_spelling, n=1, cutoff=0.5)
    return f" (nearest: {by_spelling[close[0]]})" if close else ""


def nearest_key(key: str, known: Iterable[str]) -> str:
    """Returns `nearest` for a dotted key, looking first for one that lacks only its group."""
    known = list(known)
    # depth for model.depth is the commonest slip.
    inside = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    if inside:
        return nearest(key, inside) or f" (nearest: {inside[0]})"
    return nearest(key, known)


def listing(values: Iterable[object], word: str = "or") -> str:
    """Returns ``a, b or c``."""
    names = [str(v) for v in values]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
