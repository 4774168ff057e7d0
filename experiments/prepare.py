"""Prepares a data set for training, in the form of TensorFlow Datasets and without TensorFlow.

    python -m experiments.prepare cifar10 --out=DIR                  # downloads what is published
    python -m experiments.prepare cifar10 --out=DIR --from=cifar-10-binary.tar.gz
    python -m experiments.prepare imagenet2012 --out=DIR --from=FOLDER_OF_THE_TWO_TAR_FILES
    python -m experiments.prepare image_folder --out=DIR --from=FOLDER_OF_CLASS_FOLDERS

Train from it with --config.data.dir=DIR. cifar10, cifar100, mnist, fashion_mnist, svhn_cropped and
imagenet2012 get the records, order and metadata that TFDS gives them. image_folder is for your own
pictures: one folder per class, of which a share is drawn for the test, or such folders in train/
and test/.

Archives are checked against the published sizes and SHA-256, and read without being extracted. The
same command resumes an interrupted download or an unfinished data set.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments.cli import command_line, new_files
from experiments.preparation import download, image_folder, published
from resnet_jax.allowed import check_choice
from resnet_jax.data import sources
from resnet_jax.errors import UserError

_OUT = flags.DEFINE_string("out", None, "The TFDS data_dir to write; created if it does not exist.")
_FROM = flags.DEFINE_list(
    "from", None, "The archives, or a folder that has them; the folder of an image_folder."
)
_MIRROR = flags.DEFINE_string(
    "mirror", None, "Download the archives from this URL instead, under their published names."
)
_VERIFY = flags.DEFINE_boolean(
    "verify", True, "Refuse archives that differ from the published ones; otherwise reports say so."
)
_TEST_SHARE = flags.DEFINE_float(
    "test_share", 0.1, "image_folder: the share of each class for the test.", 0.001, 0.999
)
_SEED = flags.DEFINE_integer("seed", 0, "image_folder: the seed of the draw of test pictures.", 0)

_NAMES = (*published.NAMES, image_folder.NAME)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    name = _name(argv)
    out = new_files.folder(_OUT).absolute()
    _check_flags(name)
    if name == image_folder.NAME:
        _prepare_folder(out)
    else:
        _prepare_published(name, out)
    facts = sources.facts(name, str(out))
    print(f"{out / name}: {facts.train:,} training and {facts.test:,} test pictures.")
    print(f"Train from it with --config.data.name={name} --config.data.dir={out}")
    return 0


def _name(argv: Sequence[str]) -> str:
    if len(argv) < 2:
        raise UserError(
            f"NAME is missing; allowed are {', '.join(_NAMES)}. "
            f"({command_line.spelled('shrink')} makes a copy with smaller pictures.)"
        )
    command_line.no_arguments(argv[1:])
    check_choice("NAME", argv[1], _NAMES)
    return argv[1]


def _check_flags(name: str) -> None:
    wanted = {
        published.IMAGENET: "the folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, "
        "which image-net.org gives to registered users",
        image_folder.NAME: "a folder with one folder of pictures per class",
    }
    if name in wanted and not _FROM.value:
        raise UserError(f"--from is missing; {name} is prepared from {wanted[name]}.")
    if _MIRROR.value and _FROM.value:
        raise UserError("--from and --mirror are both given; allowed is one of them.")
    if _MIRROR.value and not _MIRROR.value.startswith(("http://", "https://")):
        raise UserError(f"--mirror={_MIRROR.value} is not allowed; allowed is http:// or https://.")
    if not _VERIFY.value and not _FROM.value:
        raise UserError("--noverify has no effect on downloads; allowed is with --from.")
    if not _VERIFY.value and name == image_folder.NAME:
        raise UserError("--noverify has no effect on image_folder, of which nothing is published.")
    for flag in (_TEST_SHARE, _SEED):
        if flag.present and name != image_folder.NAME:
            raise UserError(f"--{flag.name} has no effect on {name}, whose splits are published.")


def _prepare_published(name: str, out: pathlib.Path) -> None:
    description = published.info(name, out)
    folder = out / name / str(description.version)
    if (folder / "dataset_info.json").is_file():
        print(f"{folder} is already complete; remove it to prepare it again.")
        return
    files = published.files(name, _MIRROR.value)
    if _FROM.value:
        paths = published.locate(files, _FROM.value)
    else:
        paths = download.fetch(files, out / "downloads")
    published.prepare(name, description, folder, files, paths, _VERIFY.value)


def _prepare_folder(out: pathlib.Path) -> None:
    given = _FROM.value or []
    if len(given) != 1 or not pathlib.Path(given[0]).expanduser().is_dir():
        raise UserError(f"--from={','.join(given)} is not a folder.")
    folder = out / image_folder.NAME / image_folder.VERSION
    if (folder / "dataset_info.json").is_file():
        raise UserError(f"{folder} is already complete; remove it, or give another --out.")
    pictures = pathlib.Path(given[0]).expanduser().absolute()
    image_folder.prepare(pictures, folder, _TEST_SHARE.value, _SEED.value)


if __name__ == "__main__":
    command_line.run(main)
