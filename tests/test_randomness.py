"""Every random draw is a function of seed, purpose and step, and no two draws share a key."""

import jax
import jax.numpy as jnp

from resnet_jax.programs import initializer
from resnet_jax.resolve import resolve
from resnet_jax.state import augment_key, init_key, population_key
from tests import tiny


def bits(key):
    return tuple(jax.random.key_data(key).tolist())


def test_no_key_is_used_for_two_things():
    keys = {bits(init_key(jnp.int32(seed))) for seed in range(3)}
    for seed in range(3):
        for step in range(4):
            keys.add(bits(augment_key(jnp.int32(seed), jnp.int32(step))))
            keys.add(bits(population_key(jnp.int32(seed), jnp.int32(step))))
    assert len(keys) == 3 + 3 * 4 * 2


def test_a_seed_makes_the_same_network_alone_and_among_others():
    c = resolve(tiny.config())
    initialize = initializer(c)
    together, alone = initialize([4, 5]), initialize([5])
    second = jax.tree.map(lambda a: a[1:], together)
    tiny.assert_bit_equal(second, alone)
    first = jax.tree.leaves(together.params["stage1_block1"]["conv1"])[0]
    assert abs(first[0] - first[1]).max() > 0.01
