"""Where run folders live: on a disk, or in a bucket (gs://BUCKET/PATH, s3://BUCKET/PATH).

Whatever touches a run folder goes through here, with pathlib's paths on a disk and fsspec's (UPath)
in a bucket, which are used alike. A bucket knows neither folders nor renaming nor appending; a file
in it is seen whole or not at all.
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
from typing import Any

from typing_extensions import TypeIs
from upath import UPath

from resnet_jax.errors import UserError, nearest, require_packages

Path = pathlib.Path | UPath
BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}  # the package that reaches each
_IN_MEMORY = "memory"  # fsspec's, for tests
# What fsspec remembers of a bucket would hide what other machines have written since.
_OPTIONS: dict[str, Any] = {"use_listings_cache": False}
# Or gcsfs asks for each bucket's type, which takes one more permission than its files do.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# What it raises is enough; it prints a traceback besides.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
LINES_SECONDS = 30.0  # a growing file in a bucket is written anew at most this often


def locate(path: str | os.PathLike[str] | Path, name: str = "The folder") -> Path:
    """Returns the path of a run folder, or of a file in one.

    Args:
      path: a folder, in which ``~`` stands for a home directory, or a URL of a bucket.
      name: the flag or setting it comes from, for the error.

    Raises:
      UserError: it is empty, no folder can have this name, or it is a URL and not one of a bucket.
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
            f"{text} is no place for run folders; allowed are a folder, gs://BUCKET/PATH and "
            f"s3://BUCKET/PATH{hint}."
        )
    bucket, _, inside = rest.partition("/")
    if not bucket or not inside.strip("/"):
        raise UserError(f"{text} lacks a path inside the bucket, as in {scheme}://{bucket}/runs.")
    if odd := re.search(r"[*?\[\]]", text):
        # Or fsspec takes the folder's name for a pattern, and removes what fits it.
        raise UserError(
            f"{text} has a {odd[0]} in it; a path in a bucket is without *, ?, [ and ]."
        )
    if scheme in BUCKETS:
        require_packages([BUCKETS[scheme]], text)
    return UPath(text.rstrip("/"), **(_OPTIONS if scheme in BUCKETS else {}))


def on_disk(text: str, name: str) -> pathlib.Path:
    """Returns the path of a file or folder that must lie on this machine's disks.

    Args:
      text: the path, in which ``~`` stands for a home directory.
      name: the flag or setting it comes from, for the error.

    Raises:
      UserError: it is empty, a URL, or no file can have this name.
    """
    if re.match(r"\w+:/", text):
        raise UserError(
            f"{name}={text} is a URL; it must be a path on a disk of this machine, where a bucket "
            "can be mounted as a folder."
        )
    return _on_disk(text, name)


def _on_disk(text: str, name: str) -> pathlib.Path:
    if not text.strip():
        raise UserError(f"{name} is empty; is a shell variable unset?")
    if slip := re.match(rf"({'|'.join(BUCKETS)}):/*(.*)", text):
        raise UserError(f"{text} is no folder; a bucket is {slip[1]}://{slip[2]}.")
    path = os.path.expanduser(text)  # a shell leaves the ~ of --flag=~/x as it is
    if path.startswith("~"):
        user = pathlib.PurePath(path).parts[0]
        raise UserError(
            f"{name}={text} begins with {user}, whose home directory is not known; give the whole "
            f"path, or ./{text} for a folder of that name."
        )
    try:
        os.path.abspath(path).encode("utf-8")
    except UnicodeEncodeError:
        # Orbax would fail on it at the first checkpoint.
        shown = os.fsencode(os.path.abspath(path)).decode(errors="replace")
        raise UserError(f"{name}={shown} is not UTF-8; give a path that is.") from None
    return pathlib.Path(path)


def is_bucket(path: Path) -> TypeIs[UPath]:
    """Whether a path is not on a disk."""
    return isinstance(path, UPath)


def reason(error: OSError) -> str:
    """Returns why something cannot be read or written, without the errno."""
    return error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Makes an OSError of whatever a bucket's client raises inside."""
    try:
        yield
    except OSError:
        raise
    except Exception as e:
        if not is_bucket(path):
            raise
        said = " ".join(str(e).split())[:300] or type(e).__name__
        raise OSError(errno.EIO, said) from e


def is_dir(path: Path) -> bool:
    """Whether something lies under a path; raises UserError where that cannot be told."""
    try:
        with reaching(path):
            return path.is_dir()
    except OSError as e:
        raise UserError(f"{path} cannot be read: {reason(e)}.") from e


def files(folder: UPath, depth: int | None = None) -> list[str]:
    """Returns the names of the files in a bucket's folder, as ``a/b``, of at most `depth` parts."""
    with reaching(folder):
        found = folder.fs.find(folder.path, maxdepth=depth)
    return [path.removeprefix(folder.path.rstrip("/") + "/") for path in found]


def read_bytes(path: Path) -> bytes | None:
    """Returns a file's content, None where there is no file; raises OSError."""
    try:
        with reaching(path):
            # In one request; UPath would ask first whether the file is there.
            return path.fs.cat_file(path.path) if is_bucket(path) else path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: a reader sees the old content or the new, never half.

    Raises:
      OSError: it cannot be written.
    """
    if is_bucket(path):
        with reaching(path):
            path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def modified(path: Path) -> float:
    """Returns when a file was written, in seconds since 1970 by the storage's clock."""
    with reaching(path):
        return path.fs.modified(path.path).timestamp() if is_bucket(path) else path.stat().st_mtime


def create_bytes(path: Path, content: bytes) -> bool:
    """Writes a file unless there is one; returns whether it did. Of many at once, one succeeds.

    Raises:
      OSError: it cannot be written, or the bucket's server knows no such request.
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
    """Removes a folder and all in it; raises OSError."""
    if is_bucket(folder):
        with reaching(folder), contextlib.suppress(FileNotFoundError):  # nothing is there
            folder.fs.rm(folder.path, recursive=True)
    else:
        shutil.rmtree(folder)


def move(folder: Path, name: str) -> None:
    """Renames a folder, in place of any of that name beside it; raises OSError."""
    target = folder.with_name(name)
    if not is_bucket(folder):
        if target.exists():
            remove(target)
        folder.rename(str(target))
        return
    for file in files(folder):
        write_bytes(target / file, read_bytes(folder / file) or b"")
    remove(folder)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all; raises OSError."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def read(path: Path) -> bytes | None:
    """Returns a file's content, None where there is none; raises UserError if it cannot be read."""
    try:
        return read_bytes(path)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {reason(e)}.") from e


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON file's object, empty where there is no file; raises UserError otherwise."""
    content = read(path)
    if content is None:
        return {}
    try:
        return json.loads(content)
    except ValueError as e:
        raise UserError(f"{path} is not JSON ({e}).") from e


def append_bytes(path: Path, content: bytes) -> None:
    """Adds to the end of a file; one in a bucket is written anew."""
    if is_bucket(path):
        write_bytes(path, (read_bytes(path) or b"") + content)
        return
    with open(path, "ab") as f:
        f.write(content)


class Lines:
    """A file that grows by lines, on a disk at once, in a bucket every LINES_SECONDS."""

    def __init__(self, path: Path, content: bytes):
        """Writes `content` first; raises OSError."""
        write_bytes(path, content)
        self._path = path
        self._file = None if is_bucket(path) else open(path, "ab")  # noqa: SIM115 - see close()
        self._content, self._written = bytearray(content), len(content)  # of one in a bucket
        self._written_at = time.monotonic()

    def append(self, line: bytes) -> None:
        """Adds a line; raises OSError."""
        if self._file:
            self._file.write(line)
            self.flush()
            return
        self._content += line
        if time.monotonic() - self._written_at > LINES_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns when all lines are where they belong; raises OSError."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        elif len(self._content) > self._written:
            write_bytes(self._path, bytes(self._content))
            self._written, self._written_at = len(self._content), time.monotonic()

    def close(self) -> None:
        """Lets go; flush() first."""
        if self._file:
            self._file.close()
