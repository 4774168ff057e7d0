"""Errors that are shown to the user as one sentence."""

import difflib
import importlib.util
from collections.abc import Iterable

# The optional packages, as they are imported, of each extra in pyproject.toml.
EXTRAS = {
    "buckets": ("gcsfs", "s3fs"),
    "interop": ("flatbuffers", "h5py", "onnx", "safetensors"),
    "jpeg": ("cv2", "nvidia.nvimgcodec", "PIL", "simplejpeg"),
    "plots": ("jinja2", "matplotlib", "plotly", "scipy"),
    "tensorboard": ("tensorboardX",),
    "tfds": ("array_record", "requests", "tensorflow_datasets"),
}


class UserError(Exception):
    """A mistake that the user can correct; programs print its one sentence and exit with 2."""


class RunError(Exception):
    """A run that cannot continue (full disk, unreadable checkpoints); programs exit with 1."""


def sentence(error: BaseException) -> str:
    """Returns an error's first line; an unexpected error is reported as a bug, with its type.

    Expected are UserError, RunError, a package that is not installed, and BaseExceptions that are
    not Exceptions, such as KeyboardInterrupt.
    """
    kind, message = type(error).__name__, str(error).split("\n")[0]
    if isinstance(error, UserError | RunError) or not isinstance(error, Exception):
        return message or kind
    if is_missing_package(error):
        advice = _advice(str(getattr(error, "name", "")))
        return f"a package is missing or broken ({message}); {advice}"
    return f"this is a bug in resnet_jax: {kind}{f': {message}' if message else ''}".rstrip(".")


def is_missing_package(error: BaseException) -> bool:
    """Whether `error` says that a package other than ours cannot be imported."""
    package = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    return package not in ("", "resnet_jax", "experiments", "configs")


def require_packages(packages: Iterable[str], what: str) -> None:
    """Raises UserError, with the command that installs it, if a package cannot be found.

    Args:
      packages: as they are imported; each of an extra.
      what: whatever needs them; the sentence starts with it.
    """
    for package in packages:
        if not is_installed(package):
            raise UserError(f"{what} needs {package}, which is missing; {_advice(package)}.")


def is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # the package that it is in cannot be found
        return False


def _advice(module: str) -> str:
    top = module.split(".")[0]
    for extra, packages in EXTRAS.items():
        if top in [package.split(".")[0] for package in packages]:
            return f"install it with: pip install 'resnet_jax[{extra}]'"
    return "install the packages in requirements.txt"


def nearest(value: object, allowed: Iterable[object]) -> str:
    """Returns `` (nearest: X)`` for the allowed spelling closest to `value`, or ""."""
    by_spelling = {str(a).lower(): str(a) for a in allowed}
    close = difflib.get_close_matches(str(value).lower(), by_spelling, n=1, cutoff=0.5)
    return f" (nearest: {by_spelling[close[0]]})" if close else ""


def nearest_key(key: str, known: Iterable[str]) -> str:
    """Returns `nearest` for a dotted key, preferring keys that differ only in their group."""
    known = list(known)
    # The most common mistake is to leave out the group: depth for model.depth.
    same_name = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    if same_name:
        return nearest(key, same_name) or f" (nearest: {same_name[0]})"
    return nearest(key, known)


def listing(values: Iterable[object], word: str = "or") -> str:
    """Returns ``a, b or c``."""
    names = [str(v) for v in values]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
