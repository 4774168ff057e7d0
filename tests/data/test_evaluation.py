"""Evaluation covers every example exactly once, whatever the batch size."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import evaluate
from resnet_jax.data.augment import Normalization
from resnet_jax.data.resident import ResidentSplit
from resnet_jax.data.views import Crops
from resnet_jax.networks.architectures import Architecture
from resnet_jax.networks.resnet import ResNet
from resnet_jax.parallel import mesh as meshes
from resnet_jax.programs import Compiler
from tests import tiny

N = 21


@pytest.fixture(scope="module")
def split():
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (N, 4, 4, 1)).astype(np.uint8)
    images[:, 0, 0, 0] = np.arange(N)  # identifies each image
    labels = draw.integers(0, 3, N).astype(np.int32)
    return ResidentSplit.place(images, labels, meshes.make_mesh())


ONE_VIEW = Crops(ten=False, size=4, short_side=4, resample="bilinear")


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8, 16, 20, 21, 22, 24, 64])
def test_every_example_counts_once(batch_size, split):
    seen = collections.Counter()

    def eval_step(variables, groups, labels, mask):
        (images,) = groups
        assert images.shape == (len(mask), 1, 4, 4, 1)
        assert len(mask) % 8 == 0  # 8 devices share it
        assert len(mask) - batch_size < 8
        numbers = np.asarray(images)[:, 0, 0, 0, 0]
        np.testing.assert_array_equal(labels, np.asarray(split.labels)[numbers])
        seen.update(numbers[np.asarray(mask)].tolist())
        return {"loss": jnp.full(2, mask.sum() * 1.0), "error": jnp.zeros(2)}

    steps = {False: eval_step}
    execution = tiny.execution(meshes.make_mesh(), eval_batch_size=batch_size)
    result = evaluate.evaluate(steps, None, split, ONE_VIEW, execution)
    assert seen == dict.fromkeys(range(N), 1)
    np.testing.assert_allclose(result["loss"], [1.0, 1.0])


@pytest.fixture(scope="module")
def network():
    model = ResNet(Architecture("basic", (1,), (4,)), num_classes=3, shortcut="A")
    variables = [
        model.init(jax.random.key(seed), jnp.zeros((1, 4, 4, 1)), train=True) for seed in (0, 1)
    ]
    return model, jax.tree.map(lambda *a: jnp.stack(a), *variables)


@pytest.mark.parametrize("batch_size", [3, 8, 21, 64])
def test_mean_is_numpys(batch_size, split, network):
    model, variables = network
    mesh = meshes.make_mesh()
    normalization = Normalization(
        mean=np.full((1, 1, 1, 1), 128, np.float32), std=np.full((1, 1, 1, 1), 64, np.float32)
    )
    execution = tiny.execution(mesh, eval_batch_size=batch_size)
    task = tiny.task(model, normalization, mesh)
    eval_step = Compiler(execution, replicates=2).eval_step(task, mirrored=False)
    result = evaluate.evaluate({False: eval_step}, variables, split, ONE_VIEW, execution)

    labels = np.asarray(split.labels)
    images = np.float32(split.pixels).reshape(-1, *split.image_shape)
    for replicate in (0, 1):
        replicate_variables = jax.tree.map(lambda a, r=replicate: a[r], variables)
        logits = model.apply(replicate_variables, (images - 128) / 64, train=False)
        logits = np.asarray(logits, np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = -log_p[np.arange(N), labels].mean()
        error = 100 * (logits.argmax(axis=1) != labels).mean()
        assert 0 < error < 100
        np.testing.assert_allclose(result["loss"][replicate], loss, rtol=1e-5)
        np.testing.assert_allclose(result["error"][replicate], error, rtol=1e-5)
    assert result["loss"][0] != result["loss"][1]
