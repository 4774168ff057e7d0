"""Every random draw is a function of seed, purpose and step, and no two draws share a key."""

import jax
import jax.numpy as jnp

from resnet_jax.programs import initializer
from resnet_jax.resolve import resolve
from resnet_jax.state import POPULATION, TRAINING, augment_key, init_key, network_key
from tests import tiny


def bits(key):
    return tuple(jax.random.key_data(key).tolist())


def test_all_keys_differ():
    keys = {bits(init_key(jnp.int32(seed))) for seed in range(3)}
    for seed in range(3):
        for step in range(4):
            for purpose in (TRAINING, POPULATION):
                keys.add(bits(augment_key(jnp.int32(seed), purpose, jnp.int32(step))))
            keys.add(bits(network_key(jnp.int32(seed), jnp.int32(step))))
    assert len(keys) == 3 + 3 * 4 * 3


def test_a_seeds_initial_weights_do_not_depend_on_other_seeds():
    c = resolve(tiny.config())
    initialize = initializer(c)
    both, single = initialize([4, 5]), initialize([5])
    second = jax.tree.map(lambda a: a[1:], both)
    tiny.assert_bit_equal(second, single)
    kernel = jax.tree.leaves(both.params["stage1_block1"]["conv1"])[0]
    assert abs(kernel[0] - kernel[1]).max() > 0.01
