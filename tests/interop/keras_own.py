"""ResNet-50 of Keras applications: a weight file, images and logits.

    python keras_own.py OUT    # in an environment with Keras, see test_against_others.py

OUT gets keras-50.h5 and keras-50.weights.h5, with random weights and statistics, and keras-50.npz:
images (B, H, W, C) as the network takes them, and logits.
"""

import pathlib
import sys

import keras
import numpy as np


def main():
    """Writes the network."""
    out = pathlib.Path(sys.argv[1])
    draw = np.random.default_rng(0)
    model = keras.applications.ResNet50(
        weights=None, input_shape=(64, 64, 3), classes=7, classifier_activation=None
    )
    for layer in model.layers:
        arrays = layer.get_weights()
        if isinstance(layer, keras.layers.BatchNormalization):
            scale = 0.4 if layer.name.endswith(("_0_bn", "_3_bn")) else 1.0
            shape = arrays[0].shape
            layer.set_weights([
                draw.uniform(0.1, scale, shape), draw.normal(0, 0.1, shape),
                draw.normal(0, 0.1, shape), draw.uniform(0.5, 1.5, shape),
            ])  # fmt: skip
        elif isinstance(layer, keras.layers.Conv2D):
            layer.set_weights([arrays[0], draw.normal(0, 0.1, arrays[1].shape)])
    images = draw.normal(size=(2, 64, 64, 3)).astype(np.float32)
    model.save(out / "keras-50.h5")
    model.save_weights(out / "keras-50.weights.h5")
    np.savez(out / "keras-50.npz", images=images, logits=model.predict(images, verbose=0))


if __name__ == "__main__":
    main()
