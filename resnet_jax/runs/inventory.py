"""The inventory of a checkpoint: the size and the CRC-32 of every file in it.

Orbax detects neither a flipped bit nor a file that belongs to another checkpoint.
"""

import json
import pathlib
import zlib

from resnet_jax.runs import storage

INVENTORY_FILE = "inventory.json"
_CHUNK = 1 << 24  # bytes read at a time


def complete_steps(folder: storage.Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a folder, oldest first; raises OSError."""
    if storage.is_bucket(folder):
        files = [name.split("/") for name in storage.files(folder, depth=2)]
        names = [name for name, *rest in files if rest == [INVENTORY_FILE]]
    else:  # on a disk only complete checkpoints get their final name
        names = [path.name for path in folder.iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def of_checkpoint(checkpoint: pathlib.Path) -> bytes:
    """Returns the inventory of a checkpoint's folder, as JSON."""
    return json.dumps(_sums(checkpoint), indent=1).encode()


def damage(checkpoint: pathlib.Path) -> str:
    """Returns the first difference from the inventory; empty if there is none."""
    try:
        inventory = json.loads((checkpoint / INVENTORY_FILE).read_text(encoding="utf-8"))
        sums = _sums(checkpoint)
    except (OSError, ValueError) as e:
        return f"its files cannot be read: {e}"
    for name, expected in inventory.items():
        if name not in sums:
            return f"{name} is missing"
        if sums[name] != expected:
            return f"{name} has the bytes and CRC-32 {sums[name]}, not {expected}"
    return ""


def _sums(checkpoint: pathlib.Path) -> dict[str, list[int]]:
    """Returns [bytes, CRC-32] of every file of an item, without Orbax's files beside the items."""
    return {
        path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _crc32(path)]
        for path in sorted(checkpoint.glob("*/**/*"))
        if path.is_file()
    }


def _crc32(path: pathlib.Path) -> int:
    crc = 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
