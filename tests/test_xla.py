"""What the compiler has got wrong in other versions of JAX than the pinned one."""

import jax
import jax.numpy as jnp
import numpy as np


def test_products_that_are_summed_at_once_are_right():
    """On CPU, jaxlib 0.10.2 gives the last row another value (jax issue 39103)."""

    def squared_norms(x_NC):
        return jax.vmap(lambda x_C: jnp.sum((jnp.eye(3) @ x_C) ** 2))(x_NC)

    first_N = np.arange(32_769.0)
    x_NC = jnp.stack([first_N, jnp.zeros_like(first_N), jnp.zeros_like(first_N)], axis=1)
    np.testing.assert_allclose(jax.jit(squared_norms)(x_NC), first_N**2, rtol=1e-6)
