"""The published data sets: their archives, as TFDS describes them, and what is read from them."""

import hashlib
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from absl import logging

from experiments.preparation import archives, imagenet, small_sets, writer
from experiments.preparation.download import Published
from resnet_jax.errors import UserError, listing
from resnet_jax.runs.progress import Bars

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

IMAGENET = "imagenet2012"
NAMES = (*small_sets.READERS, IMAGENET)
_NOTE = "prepared from archives that differ from the published ones"


def info(name: str, root: pathlib.Path) -> "tfds.core.DatasetInfo":
    """Returns TFDS's description of a set: version, features, citation."""
    import tensorflow_datasets as tfds

    return tfds.builder(name, data_dir=root).info


def files(name: str, mirror: str | None) -> dict[str, Published]:
    """Returns a set's archives by file name, at their publisher or at a mirror."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    listed = tfds.core.tfds_path(f"url_checksums/{name}.txt")
    if not listed.exists():
        listed = tfds.core.tfds_path(f"datasets/{name}/checksums.tsv")
    found = {}
    for url, about in checksums.load_url_infos(listed).items():
        file = url.rpartition("/")[2]
        source = urllib.parse.urljoin(f"{mirror.rstrip('/')}/", file) if mirror else url
        found[file] = Published(source, int(about.size), about.checksum)
    return found


def locate(published: Mapping[str, Published], given: Sequence[str]) -> dict[str, pathlib.Path]:
    """Returns a path for each archive: given by itself, or in a folder under its name.

    Raises:
      UserError: an archive is not there.
    """
    candidates = [pathlib.Path(path).expanduser().absolute() for path in given]
    for path in candidates:
        if not path.exists():
            raise UserError(f"--from={path} does not exist.")
    if len(published) == 1 and len(candidates) == 1 and candidates[0].is_file():
        return {next(iter(published)): candidates[0]}  # whatever its name
    paths = {}
    for file in published:
        places = [path / file if path.is_dir() else path for path in candidates]
        found = [path for path in places if path.name == file and path.is_file()]
        if not found:
            raise UserError(
                f"--from={','.join(given)} has no {file}; allowed are a folder with "
                f"{listing(published, 'and')}, or these files."
            )
        paths[file] = found[0]
    return paths


def verify(published: Mapping[str, Published], paths: Mapping[str, pathlib.Path]) -> None:
    """Raises UserError unless all archives have their published sizes and SHA-256."""
    otherwise = "it was cut or altered; --noverify reads it nonetheless, and reports say so"
    for file, path in paths.items():
        if (size := path.stat().st_size) != published[file].size:
            raise UserError(
                f"{path} has {size:,} bytes, the published {file} {published[file].size:,}: "
                f"{otherwise}."
            )
    with Bars() as bars:
        task = bars.add_task("checking", total=sum(f.size for f in published.values()), figures="")

        def advance(count: int) -> None:
            bars.advance(task, count)
            bars.draw()

        for file, path in paths.items():
            logging.info("Checking the SHA-256 of %s.", path)
            if (digest := archives.sha256(path, advance)) != published[file].sha256:
                raise UserError(
                    f"{path} has SHA-256 {digest}, the published {file} {published[file].sha256}: "
                    f"{otherwise}."
                )


def prepare(
    name: str,
    description: "tfds.core.DatasetInfo",
    folder: pathlib.Path,
    published: Mapping[str, Published],
    paths: Mapping[str, pathlib.Path],
    is_published: bool,
) -> None:
    """Checks the archives if they are to be the published ones, and writes the data set.

    Args:
      name: TFDS's.
      description: see info().
      folder: of the version, to be written.
      published: see files().
      paths: of the archives, by the same names.
      is_published: whether the archives must be the published ones.
    """
    about = [(file, path.stat().st_size, path.stat().st_mtime_ns) for file, path in paths.items()]
    made_from = hashlib.sha256(repr((is_published, sorted(about))).encode()).hexdigest()
    if is_published and not writer.is_begun(folder, made_from):
        verify(published, paths)
    if name == IMAGENET:
        splits = imagenet.read(paths)
    else:
        splits, names = small_sets.READERS[name](paths)
        for feature, labels in names.items():
            description.features[feature].names = labels
        description.download_size = sum(size for _, size, _ in about)
    note = "" if is_published else _NOTE
    writer.write(description, folder, splits, made_from=made_from, note=note)
