"""Loads exported weights into torchvision's ResNets.

    python torchvision_own.py FOLDER    # in an environment with PyTorch

For each imagenet-DEPTH.safetensors of FOLDER, torchvision's network takes every tensor and misses
none. imagenet-DEPTH.logits.npy gets its logits for the images in imagenet-DEPTH.npz.
"""

import pathlib
import sys

import numpy as np
import safetensors.torch
import torch
import torchvision


def main():
    """Loads every file."""
    for path in pathlib.Path(sys.argv[1]).glob("*.safetensors"):
        depth = path.stem.split("-")[1]
        model = getattr(torchvision.models, f"resnet{depth}")()
        model.load_state_dict(safetensors.torch.load_file(path), strict=True)
        images = np.load(path.with_suffix(".npz"))["images"].transpose(0, 3, 1, 2)
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(np.ascontiguousarray(images)))
        np.save(path.with_suffix(".logits.npy"), logits.numpy())


if __name__ == "__main__":
    main()
