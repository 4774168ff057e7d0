"""The training-step benchmark compares equal networks, and its table has the measurements."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from benchmarks import machine
from benchmarks.compiled import bound
from benchmarks.peers import flax_example, ours
from resnet_jax import losses
from resnet_jax.data import sets
from resnet_jax.errors import UserError
from resnet_jax.networks import builders, layout, summary
from resnet_jax.resolve import resolve
from tests import tiny

DEPTHS = {"imagenet": (18, 34, 50, 101, 152), "cifar": (20, 32, 44, 56, 110)}
# The deepest of each kind of block; the others are slow.
QUICK = [("cifar", 110), ("imagenet", 34), ("imagenet", 50)]
NETWORKS = [
    pytest.param(
        family, depth, shortcut, marks=[] if (family, depth) in QUICK else pytest.mark.slow
    )
    for family, depths in DEPTHS.items()
    for depth in depths
    for shortcut in ("none", "A", "B", "C")
]
# Small networks with every kind of layer.
SMALL = [
    ("cifar", 8, "A", "v1"),
    pytest.param("cifar", 8, "none", "v1", marks=pytest.mark.slow),
    pytest.param("cifar", 8, "C", "v1", marks=pytest.mark.slow),
    pytest.param("imagenet", 18, "B", "v1", marks=pytest.mark.slow),
    pytest.param("imagenet", 50, "A", "v1.5", marks=pytest.mark.slow),
    pytest.param("imagenet", 50, "B", "v1", marks=pytest.mark.slow),
]
SIDE = {"cifar": 32, "imagenet": 64}
BATCH = 4
# Tolerance relative to a gradient's norm. Rounding may flip a ReLU or a maximum. With few examples
# the late layers have few positions, and one flip there changes all gradients before it.
GRADIENTS = 0.1
STATISTICS = 1e-3  # relative to a moving average's norm; flips matter less in the forward pass


def network(family, depth, shortcut, stride="v1"):
    """Returns a float32 config of small images, whose BatchNorm takes the whole batch."""
    return ours.config(
        family, depth, shortcut=shortcut, bottleneck_stride=stride, dtype="float32",
        batch_size=BATCH, bn_group=0, image_size=SIDE[family],
    )  # fmt: skip


def torch_peer():
    why = "PyTorch is not installed: benchmarks/requirements.txt"
    torch = pytest.importorskip("torch", reason=why)
    torch.set_num_threads(1)  # its idle threads spin, which slows other tests down
    from benchmarks.peers import torch_example

    return torch_example


def parameters_of(net, image_shape):
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=True), image)
    return sum(a.size for a in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(("family", "depth", "shortcut"), NETWORKS)
def test_flaxs_network_has_as_many_parameters_as_ours(family, depth, shortcut):
    config = network(family, depth, shortcut)
    shape = sets.image_shape(config.data)
    ours = summary.summarize(builders.from_config(config.model), shape).parameters
    assert parameters_of(flax_example.network(config.model), shape) == ours


@pytest.mark.parametrize(("family", "depth", "shortcut"), NETWORKS)
def test_pytorchs_network_has_as_many_parameters_as_ours(family, depth, shortcut):
    peer = torch_peer()
    import torch

    config = network(family, depth, shortcut)
    with torch.device("meta"):
        net = peer.ResNet(config.model, channels=3)
    ours = summary.summarize(builders.from_config(config.model), sets.image_shape(config.data))
    assert sum(p.numel() for p in net.parameters()) == ours.parameters


# ---------------------------------------------------------------------- the same function


def to_flax(variables):
    """Returns our variables in the layout of the Flax peer's network, with unstacked blocks."""
    return {name: layout.by_block(collection) for name, collection in variables.items()}


def to_torch(params):
    """Returns our parameters or gradients with the names and layouts of the PyTorch peer's."""
    flat = traverse_util.flatten_dict(to_flax({"params": params})["params"], sep=".")
    moved = {}
    for path, value in flat.items():
        module, _, kind = path.rpartition(".")
        array = np.asarray(value)
        if kind == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        moved[f"{module}.{'bias' if kind == 'bias' else 'weight'}"] = np.array(array, order="C")
    return moved


def ours_on_noise(config):
    """Returns variables, normalised images, labels, our loss, new batch_stats and gradients."""
    net = builders.from_config(config.model)
    images, labels = ours.make_work(config).normalised_batch()

    def loss(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = net.apply(variables, images, train=True, mutable=["batch_stats"])
        each = losses.cross_entropy(logits, jnp.asarray(labels), 0.0)
        return each.mean(), updated["batch_stats"]

    variables = net.init(jax.random.key(1), images[:1], train=True)
    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, stats), grads = grad(variables["params"], variables["batch_stats"])
    return variables, images, labels, float(value), stats, grads


def assert_close(theirs, ours, within):
    assert theirs.keys() == ours.keys()
    for name, expected in ours.items():
        norm = np.linalg.norm(expected)
        assert norm > 0, f"{name} is zero, which proves nothing"
        assert np.linalg.norm(np.asarray(theirs[name]) - expected) < within * norm, name


def flatten(tree):
    flat = traverse_util.flatten_dict(tree, sep=".")
    return {name: np.asarray(value) for name, value in flat.items()}


@pytest.mark.parametrize(("family", "depth", "shortcut", "stride"), SMALL)
def test_flaxs_step_computes_what_ours_does(family, depth, shortcut, stride):
    config = network(family, depth, shortcut, stride)
    variables, images, labels, loss, stats, grads = ours_on_noise(config)
    net, theirs = flax_example.network(config.model), to_flax(variables)

    def of(params):
        return flax_example.loss_of(net, params, theirs["batch_stats"], images, labels)

    (value, (new_stats, _)), gradients = jax.jit(jax.value_and_grad(of, has_aux=True))(
        theirs["params"]
    )
    assert float(value) == pytest.approx(loss, rel=1e-5)
    expected = flatten(to_flax({"batch_stats": stats})["batch_stats"])
    assert_close(flatten(new_stats), expected, STATISTICS)
    assert_close(flatten(gradients), flatten(to_flax({"params": grads})["params"]), GRADIENTS)


@pytest.mark.parametrize(("family", "depth", "shortcut", "stride"), SMALL)
def test_pytorchs_step_computes_what_ours_does(family, depth, shortcut, stride):
    peer = torch_peer()
    import torch

    config = network(family, depth, shortcut, stride)
    variables, images, labels, loss, _, grads = ours_on_noise(config)
    net = peer.ResNet(config.model, channels=3).train()
    weights = {name: torch.from_numpy(a) for name, a in to_torch(variables["params"]).items()}
    assert weights.keys() == dict(net.named_parameters()).keys()
    net.load_state_dict(weights, strict=False)  # the moving averages keep their initial values
    out = net(torch.tensor(images.transpose(0, 3, 1, 2)))
    value = torch.nn.functional.cross_entropy(out, torch.tensor(labels).long())
    value.backward()
    assert float(value.detach()) == pytest.approx(loss, rel=1e-5)
    theirs = {name: p.grad.numpy() for name, p in net.named_parameters()}
    assert_close(theirs, to_torch(grads), GRADIENTS)


@pytest.mark.parametrize("name", ["resnet_jax", "flax", "torch"])
@pytest.mark.slow
def test_a_program_learns_its_one_batch(name):
    config = network("cifar", 8, "A")
    work = ours.make_work(config)
    # A single batch for all, since ours would draw from a whole split.
    work = type(work)(config, work.images[:BATCH], work.labels[:BATCH], work.normalization)
    if name == "torch":
        program = torch_peer().make(work, "none")
    else:
        program = {"resnet_jax": ours, "flax": flax_example}[name].make(work)
    before = program.run(1)
    assert program.run(30) < before / 2


# --------------------------------------------------------------------------- the memory bound


def test_the_bound_of_a_tiny_network_agrees_with_a_count_by_hand():
    config = tiny.config(model__depth=8, model__shortcut="A", model__width=1.0)
    model = resolve(config).model
    found = bound.traffic(flax_example.network(model), (8, 8, 3))
    # Elements: the stem and two convolutions per stage; then the blocks' shortcuts.
    outputs = 8 * 8 * 16 + 2 * (8 * 8 * 16) + 2 * (4 * 4 * 32) + 2 * (2 * 2 * 64)
    stays, halves, again = 4 * 8 * 8 * 16, 2 * (8 * 8 + 4 * 4) * 16, 2 * (4 * 4 + 2 * 2) * 32
    assert found.activations == 6 * outputs + stays + halves + again == 35584
    assert found.pixels == 192
    kernels = 9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
    norms = 2 * (3 * 16 + 2 * 32 + 2 * 64)
    assert found.parameters == kernels + norms + 64 * 10 + 10
    moved = 35584 * 2 + 2 * 192
    assert found.bytes_a_step(5, "bfloat16") == 5 * moved + 20 * found.parameters


def test_the_bound_counts_projections_and_plain_blocks_apart():
    shape, moved = (8, 8, 3), {}
    for shortcut in ("none", "A", "B"):
        config = tiny.config(model__depth=8, model__shortcut=shortcut, model__width=1.0)
        net = flax_example.network(resolve(config).model)
        moved[shortcut] = bound.traffic(net, shape).activations
    inputs = 8 * 8 * 16 + 4 * 4 * 32  # the inputs of the two blocks with a stride
    assert moved["none"] == 35584 - 4 * 8 * 8 * 16 - 2 * inputs - 2 * (4 * 4 * 16 + 2 * 2 * 32)
    assert moved["B"] == moved["A"] - 2 * (4 * 4 * 16 + 2 * 2 * 32) + 5 * (4 * 4 * 32 + 2 * 2 * 64)


def test_the_users_limits_precede_the_makers_and_those_the_measured():
    class Device:
        device_kind = "NVIDIA H200"

    assert machine.bandwidth(Device(), 123.0) == (123.0, "--bandwidth")
    assert machine.bandwidth(Device(), 0.0) == (4800, "the maker")
    assert machine.peak(Device(), "bfloat16", 7.0) == (7.0, "--peak")
    assert machine.peak(Device(), "bfloat16", 0.0) == (989.4, "the maker")
    assert machine.peak(jax.devices()[0], "bfloat16", 0.0) is None


# ------------------------------------------------------------------------------- the program


def benchmark(*flags):
    return tiny.program("benchmarks.train_step", *flags)


MISTAKES = {
    "--depths=18,x": "error: --depths has 'x'; allowed are whole numbers from 1 up.",
    "--depths=19": "error: model.depth=19 is not in the imagenet family, whose depths are 18, 34, "
    "50, 101 and 152 (nearest: 18 and 34).",
    "--peers=flx": "error: --peers='flx' is not known; allowed are flax, torch or torch_loop "
    "(nearest: flax).",
    "--peers=torch_loop": "error: --peers=torch_loop does not support --family=imagenet, since its "
    "data loader keeps CIFAR's images in memory; allowed is cifar.",
    "--bn_group=3": "error: model.bn_group=3 does not divide batch_size=256; allowed are its "
    "divisors, or 0 for the whole batch.",
    "--dtype=float16": "error: --dtype=float16: value should be one of <bfloat16|float32>.",
}


@pytest.mark.parametrize("flag", MISTAKES)
def test_a_mistake_is_one_sentence(flag):
    done = benchmark(flag)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", MISTAKES[flag] + "\n")


def test_the_recipes_groups_stay_if_they_divide_the_batch():
    group = {size: ours.config("imagenet", 50, batch_size=size) for size in (64, 48)}
    assert {size: config.model.bn_group for size, config in group.items()} == {64: 32, 48: 0}
    with pytest.raises(UserError, match="does not divide"):
        ours.config("imagenet", 50, batch_size=48, bn_group=32)


@pytest.mark.slow
def test_it_measures_every_program(tmp_path):
    has = {name: bool(importlib.util.find_spec(name)) for name in ("torch", "torchvision")}
    done = benchmark("--family=cifar", "--depths=8", "--batch_size=16", "--rounds=2", "--steps=2",
                     "--peers=flax,torch,torch_loop", "--peak=1", f"--out={tmp_path}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["unit"] == "images a second, median [lowest, highest]"
    assert (table["rounds"], table["steps_a_round_at_least"], table["batch_size"]) == (2, 2, 16)
    assert (table["dtype"], table["image_size"], table["bn_group"]) == ("bfloat16", 32, 0)
    assert table["device"] == "cpu: cpu"
    assert table["peak"] == "1 TFLOP/s (--peak)"
    assert "a += 2 b" in table["bandwidth"]
    expected = ["resnet_jax", "flax"]
    expected += ["torch"] * has["torch"] + ["torch_loop"] * (has["torch"] and has["torchvision"])
    (row,) = table["rows"]
    assert (row["family"], row["depth"], row["shortcut"]) == ("cifar", 8, "A")
    assert list(row["images_a_second"]) == list(row["derived"]) == expected
    text = (tmp_path / "table.txt").read_text()
    assert text.strip() in done.stdout
    for name, rates in row["images_a_second"].items():
        assert len(rates) == 2
        assert min(rates) > 0
        assert f"{np.median(rates):,.0f} [{min(rates):,.0f}, {max(rates):,.0f}]" in text
        assert isinstance(row["last_loss"][name], float)
        seconds = 16 / np.median(rates)
        derived = row["derived"][name]
        assert derived["tflop_a_second"] == pytest.approx(row["flop_a_step"] / seconds / 1e12)
        assert derived["share_of_peak"] == pytest.approx(derived["tflop_a_second"])
        assert 0 < derived["share_of_memory_bound"] < 1
    assert ("not installed" in done.stderr) == (not all(has.values()))
