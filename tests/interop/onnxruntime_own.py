"""Runs ONNX models: for each NAME.onnx and NAME.npz (images) in a folder, NAME.out.npy.

python onnxruntime_own.py FOLDER    # in an environment with onnxruntime
"""

import pathlib
import sys

import numpy as np
import onnxruntime


def main():
    """Runs every model of the folder."""
    for path in pathlib.Path(sys.argv[1]).glob("*.onnx"):
        session = onnxruntime.InferenceSession(path)
        images = np.load(path.with_suffix(".npz"))["images"]
        (output,) = session.run(None, {session.get_inputs()[0].name: images})
        np.save(path.with_suffix(".out.npy"), output)


if __name__ == "__main__":
    main()
