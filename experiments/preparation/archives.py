"""Reads archives that may be cut, altered or hostile, without extracting anything.

Nothing is written, no link is followed and no pickle is loaded. Members are read by name, with a
limit on their size, into memory. Every fault raises UserError, which names the archive.
"""

import contextlib
import gzip
import hashlib
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping

from resnet_jax.errors import UserError
from resnet_jax.runs import storage

_BLOCK = 1 << 20  # bytes
_TAR_BLOCK = 512  # bytes
_MORE = 4 << 20  # bytes of headers and of texts that an archive may hold beside its data


def sha256(path: pathlib.Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """Returns a file's SHA-256 in hex; `advance` is called with the bytes of each block read."""
    digest = hashlib.sha256()
    with reading(path), open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def read_gzip(path: pathlib.Path, limit: int) -> bytes:
    """Returns the content of a gzip file of at most `limit` bytes when decompressed."""
    with reading(path), gzip.open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path} holds more than the {limit:,} bytes that belong in it.")
    return content


def read_tar_gz(path: pathlib.Path, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Returns members of a .tar.gz by name.

    Args:
      path: the archive.
      sizes: the largest size in bytes of each member to be read; all must be there. The whole
        archive may not hold much more than their sum.
    """
    contents: dict[str, bytes] = {}
    limit = sum(sizes.values()) + _MORE
    with (
        reading(path),
        _LimitedGzip(path, limit) as file,
        tarfile.open(fileobj=file, mode="r|") as tar,
    ):
        for member in tar:
            name = _checked_name(path, member)
            if name not in sizes:
                continue
            if member.size > sizes[name]:
                raise UserError(
                    f"{path}: {name} has {member.size:,} bytes; allowed are {sizes[name]:,}."
                )
            if name in contents:
                raise UserError(f"{path} holds {name} twice.")
            contents[name] = _content(tar, member)
    for name in sizes:
        if name not in contents:
            raise UserError(f"{path} holds no {name}; it is cut short or another archive.")
    return contents


class _LimitedGzip(gzip.GzipFile):
    """A gzip file that is read up to a limit, against archives that decompress without end."""

    def __init__(self, path: pathlib.Path, limit: int):
        super().__init__(path, "rb")
        self._path, self._limit, self._left = path, limit, limit

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(size)
        self._left -= len(block)
        if self._left < 0:
            raise UserError(
                f"{self._path} holds more than the {self._limit:,} bytes that belong in it."
            )
        return block


def members(
    path: pathlib.Path, start: int = 0, end: int | None = None
) -> Iterator[tarfile.TarInfo]:
    """Yields the regular files of an uncompressed tar, which may be a part of another file.

    Each member's `offset_data` counts from the start of the file.

    Args:
      path: the file.
      start: the position of the tar's first byte.
      end: the position after its last byte; None: the end of the file.
    """
    position = start
    with reading(path), open(path, "rb") as file:
        end = path.stat().st_size if end is None else end
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                member.name = _checked_name(path, member)
                position = member.offset_data + -(-member.size // _TAR_BLOCK) * _TAR_BLOCK
                if position > end:
                    raise UserError(f"{path} is cut short within {member.name}.")
                if member.isfile():
                    yield member
        # tarfile takes a damaged header for the end, which is a block of zeros.
        file.seek(position)
        if position + _TAR_BLOCK > end or any(file.read(_TAR_BLOCK)):
            raise UserError(f"{path} is damaged or cut short at byte {position:,}.")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    content = file.read()
    if len(content) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _checked_name(path: pathlib.Path, member: tarfile.TarInfo) -> str:
    """Returns a member's name without ``./``.

    Raises:
      UserError: it is a link or a device, or its name leads out of the archive's folder.
    """
    name = pathlib.PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()):
        raise UserError(f"{path}: {member.name!r} is a link or a device; allowed are files.")
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{path}: {member.name!r} leads out of the archive's folder.")
    return str(name)


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turns the errors of damaged archives and of disks into UserError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as e:
        reason = str(e).split("\n")[0].rstrip(".") or type(e).__name__
        raise UserError(f"{path} is damaged, cut short or no such archive ({reason}).") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read: {storage.reason(e)}.") from e
