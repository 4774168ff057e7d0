"""ResNets and their plain twins in JAX/Flax, and how to train them."""
