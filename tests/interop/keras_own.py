"""Networks in Keras: weight files, images and logits.

    python keras_own.py OUT    # in an environment with Keras, see test_against_others.py

OUT gets, of Keras applications' ResNet-50, keras-50.h5, keras-50.keras and keras-50.weights.h5,
with random weights and statistics, and keras-50.npz: images (B, H, W, C) as the network takes them,
and logits. nested.keras, nested.h5 and nested.npz are of 14 layers inside of another model.
If OUT has trained.h5 and pictures.npz (images), trained.npy is what the model computes.
"""

import pathlib
import sys

import keras
import numpy as np


def nested():
    """Returns a network whose convolutions are a model in a sequential model."""
    layers = keras.layers
    inputs = keras.Input((32, 32, 3))

    def normed(x, filters, size, stride=1):
        x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    x = keras.ops.relu(normed(inputs, 8, 3))
    for filters in (8, 16, 32):
        for number in range(2):
            stride = 2 if filters > 8 and number == 0 else 1
            y = layers.ReLU()(normed(x, filters, 3, stride))
            y = normed(y, filters, 3)
            x = layers.ReLU()(y + (normed(x, filters, 1, stride) if stride > 1 else x))
    trunk = keras.Model(inputs, x, name="trunk")
    head = [layers.GlobalAveragePooling2D(), layers.Dropout(0.1), layers.Dense(5)]
    return keras.Sequential([keras.Input((32, 32, 3)), layers.RandomFlip(), trunk, *head])


def save(model, images, out, name):
    """Writes a model in both formats, and its logits."""
    model.save(out / f"{name}.h5")
    model.save(out / f"{name}.keras")
    np.savez(out / f"{name}.npz", images=images, logits=model.predict(images, verbose=0))


def main():
    """Writes the networks."""
    out = pathlib.Path(sys.argv[1])
    if (out / "trained.h5").exists():
        model = keras.models.load_model(out / "trained.h5", compile=False)
        images = np.load(out / "pictures.npz")["images"]
        np.save(out / "trained.npy", model.predict(images, verbose=0, batch_size=500))
        return
    draw = np.random.default_rng(0)
    model = nested()
    for weight in model.weights:
        values = draw.normal(0, 0.2, weight.shape)
        weight.assign(np.abs(values) + 0.5 if weight.name == "moving_variance" else values)
    save(model, draw.normal(size=(2, 32, 32, 3)).astype(np.float32), out, "nested")
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
    save(model, images, out, "keras-50")
    model.save_weights(out / "keras-50.weights.h5")


if __name__ == "__main__":
    main()
