"""What the compiler has got wrong in other versions of JAX than the pinned one."""

import jax
import jax.numpy as jnp
import numpy as np


def test_products_that_are_summed_at_once_are_right():
    # On CPU, jaxlib 0.10.2 gives the last row another value (jax issue 39103).
    def squared_norms(rows):
        return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)

    first = np.arange(32_769.0)
    rows = jnp.stack([first, jnp.zeros_like(first), jnp.zeros_like(first)], axis=1)
    np.testing.assert_allclose(jax.jit(squared_norms)(rows), first**2, rtol=1e-6)
