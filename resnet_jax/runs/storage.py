"""Files of run folders on a disk or in a bucket (gs://BUCKET/PATH, s3://BUCKET/PATH).

All access to run folders goes through this file, with a pathlib.Path on a disk and an fsspec UPath,
which has the same methods, in a bucket. A bucket has no folders, no renaming and no appending, and
readers see a file complete or not at all.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from typing_extensions import TypeIs
from upath import UPath

from resnet_jax.errors import UserError, nearest, require_packages

Path = pathlib.Path | UPath
Json = dict[str, Any]  # a JSON object
BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}  # the package that reaches each
_IN_MEMORY = "memory"  # fsspec's in-memory bucket, for tests
# A cached listing would hide files that other machines have written since.
_OPTIONS: dict[str, Any] = {"use_listings_cache": False}
# Otherwise gcsfs asks for each bucket's type, which needs one more permission than its files do.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# gcsfs prints a traceback in addition to raising.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
LINES_SECONDS = 30.0  # a growing file in a bucket is rewritten at most this often


def locate(path: str | os.PathLike[str] | Path, name: str = "The folder") -> Path:
    """Returns the path of a run folder, or of a file in one.

    Args:
      path: a folder, in which ``~`` stands for a home directory, or the URL of a bucket.
      name: the flag or setting it comes from, for the error message.

    Raises:
      UserError: it is empty, not a valid folder name, or a URL that is not a bucket's.
    """
    if isinstance(path, pathlib.Path | UPath):
        return path
    text = os.fspath(path)
    scheme, is_url, rest = text.partition("://")
    if not is_url:
        return _on_disk(text, name)
    if scheme not in (*BUCKETS, _IN_MEMORY):
        hint = nearest(f"{scheme}://", [f"{known}://" for known in BUCKETS])
        raise UserError(
            f"{text} cannot hold run folders; allowed are a folder, gs://BUCKET/PATH and "
            f"s3://BUCKET/PATH{hint}."
        )
    bucket, _, inside = rest.partition("/")
    if not bucket or not inside.strip("/"):
        raise UserError(f"{text} lacks a path inside the bucket, as in {scheme}://{bucket}/runs.")
    if wildcard := re.search(r"[*?\[\]]", text):
        # fsspec would treat the name as a pattern, and remove every file that matches.
        raise UserError(
            f"{text} contains {wildcard[0]}; a path in a bucket must not contain *, ?, [ or ]."
        )
    if scheme in BUCKETS:
        require_packages([BUCKETS[scheme]], text)
    return UPath(text.rstrip("/"), **(_OPTIONS if scheme in BUCKETS else {}))


def on_disk(text: str, name: str) -> pathlib.Path:
    """Returns the path of a file or folder that must be on a disk of this machine.

    Args:
      text: the path, in which ``~`` stands for a home directory.
      name: the flag or setting it comes from, for the error message.

    Raises:
      UserError: it is empty, a URL, or not a valid file name.
    """
    if re.match(r"\w+:/", text):
        raise UserError(
            f"{name}={text} is a URL; it must be a path on a disk of this machine (a bucket can be "
            "mounted as a folder)."
        )
    return _on_disk(text, name)


def _on_disk(text: str, name: str) -> pathlib.Path:
    if not text.strip():
        raise UserError(f"{name} is empty; is a shell variable unset?")
    if slip := re.match(rf"({'|'.join(BUCKETS)}):/*(.*)", text):
        raise UserError(f"{text} is not a folder; a bucket is {slip[1]}://{slip[2]}.")
    path = os.path.expanduser(text)  # the shell does not expand ~ in --flag=~/x
    if path.startswith("~"):
        user = pathlib.PurePath(path).parts[0]
        raise UserError(
            f"{name}={text} begins with {user}, whose home directory is unknown; give the full "
            f"path, or ./{text} for a folder of that name."
        )
    try:
        os.path.abspath(path).encode("utf-8")
    except UnicodeEncodeError:
        # Orbax would fail at the first checkpoint.
        shown = os.fsencode(os.path.abspath(path)).decode(errors="replace")
        raise UserError(f"{name}={shown} is not UTF-8; give a UTF-8 path.") from None
    return pathlib.Path(path)


def is_bucket(path: Path) -> TypeIs[UPath]:
    """Whether a path is in a bucket."""
    return isinstance(path, UPath)


def reason(error: OSError) -> str:
    """Returns an error's message without its errno."""
    return error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Turns any exception of a bucket's client into an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as e:
        if not is_bucket(path):
            raise
        message = " ".join(str(e).split())[:300] or type(e).__name__
        raise OSError(errno.EIO, message) from e


def is_dir(path: Path) -> bool:
    """Whether a path is a folder, or any file's prefix; raises UserError if it cannot be read."""
    try:
        with reaching(path):
            return path.is_dir()
    except OSError as e:
        raise UserError(f"{path} cannot be read: {reason(e)}.") from e


def files(folder: UPath, depth: int | None = None) -> list[str]:
    """Returns the names (``a/b``) of the files in a bucket's folder, up to `depth` levels deep."""
    with reaching(folder):
        paths = folder.fs.find(folder.path, maxdepth=depth)
    return [path.removeprefix(folder.path.rstrip("/") + "/") for path in paths]


def download(folder: UPath, local: pathlib.Path) -> None:
    """Copies all files of a bucket's folder into a new folder on a disk; raises OSError."""
    names = files(folder)
    for name in names:
        (local / name).parent.mkdir(parents=True, exist_ok=True)
    with reaching(folder):
        folder.fs.get(
            [(folder / name).path for name in names], [str(local / name) for name in names]
        )


def read_bytes(path: Path) -> bytes | None:
    """Returns a file's content, or None if it does not exist; raises OSError."""
    try:
        with reaching(path):
            # One request; UPath.read_bytes would first ask whether the file exists.
            return path.fs.cat_file(path.path) if is_bucket(path) else path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: readers see the old content or the new, never a part.

    Raises:
      OSError: it cannot be written.
    """
    if is_bucket(path):
        with reaching(path):
            path.write_bytes(content)
        return
    with writing(path) as f:
        f.write(content)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a new file on a disk, which appears under its name once it is complete.

    Raises:
      OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def modified(path: Path) -> float:
    """Returns a file's modification time by the storage's clock, in seconds since 1970."""
    with reaching(path):
        return path.fs.modified(path.path).timestamp() if is_bucket(path) else path.stat().st_mtime


def create_bytes(path: Path, content: bytes) -> bool:
    """Creates a file and returns True, or False if it exists; one of concurrent calls succeeds.

    Raises:
      OSError: it cannot be written, or the bucket's server does not support this.
    """
    try:
        with reaching(path):
            if is_bucket(path):
                path.fs.pipe_file(path.path, content, mode="create")
            else:
                with open(path, "xb") as f:
                    f.write(content)
    except FileExistsError:
        return False
    return True


def remove(folder: Path) -> None:
    """Removes a folder with its content; raises OSError."""
    if is_bucket(folder):
        with reaching(folder), contextlib.suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)
    else:
        shutil.rmtree(folder)


def move(folder: Path, name: str) -> None:
    """Renames a folder, replacing any folder of that name beside it; raises OSError."""
    target = folder.with_name(name)
    if not is_bucket(folder):
        if target.exists():
            remove(target)
        folder.rename(str(target))
        return
    for file in files(folder):
        write_bytes(target / file, read_bytes(folder / file) or b"")
    remove(folder)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file atomically; raises OSError."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def read_or_none(path: Path) -> bytes | None:
    """Returns a file's content, or None if it does not exist; raises UserError if unreadable."""
    try:
        return read_bytes(path)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {reason(e)}.") from e


def read_json(path: Path) -> Any:
    """Returns a JSON file's object, empty if it does not exist; raises UserError if invalid."""
    content = read_or_none(path)
    if content is None:
        return {}
    try:
        found = parse_json(content)
    except ValueError as e:
        raise UserError(f"{path} is not JSON ({e}).") from e
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object.")
    return found


def parse_json(content: bytes) -> Any:
    """Returns JSON's value; raises ValueError if it is invalid, as NaN and Infinity are."""

    def refuse(constant: str) -> None:
        raise ValueError(f"it has {constant}")

    return json.loads(content, parse_constant=refuse)


def append_bytes(path: Path, content: bytes) -> None:
    """Appends to a file, which in a bucket means rewriting it; raises OSError."""
    if is_bucket(path):
        write_bytes(path, (read_bytes(path) or b"") + content)
        return
    with open(path, "ab") as f:
        f.write(content)


class Lines:
    """A file that grows by lines: on a disk at once, in a bucket every LINES_SECONDS."""

    def __init__(self, path: Path, content: bytes):
        """Creates or replaces the file, with `content`; raises OSError."""
        write_bytes(path, content)
        self._path = path
        self._file = None if is_bucket(path) else open(path, "ab")  # noqa: SIM115 - see close()
        self._content, self._written = bytearray(content), len(content)  # used in a bucket
        self._written_at = time.monotonic()

    def append(self, line: bytes) -> None:
        """Appends a line; raises OSError."""
        if self._file:
            self._file.write(line)
            self.flush()
            return
        self._content += line
        if time.monotonic() - self._written_at > LINES_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Waits until all lines are stored; raises OSError."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        elif len(self._content) > self._written:
            write_bytes(self._path, bytes(self._content))
            self._written, self._written_at = len(self._content), time.monotonic()

    def close(self) -> None:
        """Closes the file; call flush() first."""
        if self._file:
            self._file.close()
