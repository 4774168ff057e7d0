"""Picture files and the same pictures in a data set give the same predictions and features."""

import dataclasses

import jax
import numpy as np
import pytest

import resnet_jax
from configs import cifar10
from resnet_jax.analysis import examples, predictions
from resnet_jax.data import sources
from resnet_jax.data.pictures import Files
from resnet_jax.errors import UserError
from resnet_jax.networks import builders
from resnet_jax.resolve import resolve
from resnet_jax.trained import Trained
from tests.data import pictures, test_tfds
from tests.interop import foreign


def trained(config):
    """Returns a run's network with random variables."""
    c = resolve(config)
    model = dataclasses.replace(builders.from_config(c.model, scan=False), remat=())
    variables = jax.tree.map(jax.numpy.asarray, foreign.drawn(model, c.data.image_size))
    return Trained(
        model=model, variables=variables, seed=0, step=0, is_tested=True, config=c,
        data_content="", saved_normalization=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """A network for ImageNet, and the files of its test split."""
    root = tmp_path_factory.mktemp("imagenet")
    pictures.prepare(root)
    return trained(pictures.config(root)), written(root, pictures.records(root, "validation"))


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    """A network for CIFAR-10, and the files of its test split."""
    root = tmp_path_factory.mktemp("cifar")
    folder = test_tfds.prepare(root, "cifar10")
    c = cifar10.get_config()
    c.data.dir, c.data.validation, c.model.depth, c.model.width = str(root), 0, 8, 0.25
    c.batch_size, c.steps, c.model.bn_group = 8, 1, 0
    return trained(c), written(root, sources.Records(folder, "test", 10))


def written(root, records):
    paths = [root / f"{number}.picture" for number in range(len(records))]
    for number, path in enumerate(paths):
        path.write_bytes(records[number].image)
    return paths


@pytest.fixture(params=["streamed", "resident"])
def case(request):
    return request.getfixturevalue(request.param)


def test_predictions_for_files_are_those_for_the_set(case):
    run, paths = case
    of_set = predictions.predict(run)
    files = Files(paths)
    with examples.of_files(run, files) as given:
        assert len(given) == len(paths)
        parts = list(examples.outputs(run, given, predictions.log_probabilities(run)))
    numbers, logs = map(np.concatenate, zip(*parts, strict=True))
    assert numbers.tolist() == list(range(len(paths)))
    assert np.ptp(of_set.logs, axis=0).min() > 0.01  # pictures differ
    np.testing.assert_allclose(logs, of_set.logs, rtol=1e-5, atol=1e-5)


def test_another_copy_than_the_run_s_is_refused_or_noted(resident, streamed):
    for (run, _), refuses in ((resident, True), (streamed, False)):
        other = dataclasses.replace(run, data_content="another")
        if refuses:
            with pytest.raises(UserError, match="does not hold the cifar10 that the run was"):
                predictions.predict(other)
        else:
            assert predictions.predict(other).note == (
                "the run was trained on another copy of these pictures"
            )
            assert predictions.predict(run).note == ""


def test_features_are_those_of_the_normalised_images(case):
    run, paths = case
    with examples.of_files(run, Files(paths)) as given:
        seen = [rows for _, rows in examples.outputs(run, given, lambda _, groups: groups[0][:, 0])]
        names = ["stage1", "pooled"]
        for mean in (False, True):
            of = examples.features_of(run, names, mean)
            found = [rows for _, rows in examples.outputs(run, given, of)]
            images = run.normalization(np.concatenate(seen))
            wanted = resnet_jax.features(run.model, run.variables, images, names)
            for name in names:
                array = np.concatenate([rows[name] for rows in found])
                by_hand = np.asarray(wanted[name])
                by_hand = by_hand.mean((1, 2)) if mean and name == "stage1" else by_hand
                assert array.dtype == np.float32
                np.testing.assert_allclose(array, by_hand, rtol=1e-4, atol=1e-5, err_msg=name)


def test_all_batches_share_a_program(streamed):
    run, paths = streamed
    traced = []

    def count(variables, groups):
        traced.append(groups[0].shape)
        return groups[0][:, 0, 0, 0, 0]

    with examples.of_files(run, Files(paths)) as given:
        sizes = [len(labels) for labels, _ in examples.outputs(run, given, count)]
    assert sizes == [8, 3]  # eight devices share a batch
    assert traced == [(8, 1, 32, 32, 3)]
