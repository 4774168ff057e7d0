"""What differs from block to block besides the weights: scales, and random numbers in training."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class Scales(NamedTuple):
    """Numbers that multiply a block's shortcut and branch, float32; None for 1.

    He et al. 2016, section 3.1, study constant scales of both. SkipInit (De & Smith 2020, arXiv
    2002.10444) and ReZero (Bachlechner et al. 2020, arXiv 2003.04887) learn the branch's from 0.
    Branches of 1/sqrt(L) keep the variance bounded in L blocks (Hayou et al. 2021, arXiv
    2010.12859; Marion et al. 2022, arXiv 2206.06929).
    """

    shortcut: ArrayLike | None = None
    branch: ArrayLike | None = None


UNSCALED = Scales()


class NetworkDraws(NamedTuple):
    """The source of a training step's random numbers.

    Attributes:
      key: of the step. All parts of a batch share it, and with it the blocks that are dropped.
      examples_B: int32; each example's number in the whole batch.
    """

    key: jax.Array
    examples_B: jax.Array


# Of each of L blocks, or of one: its scales, and a key per example for dropout.
PerBlock = tuple[Scales, jax.Array | None]


@dataclasses.dataclass(frozen=True)
class Variation:
    """Makes the PerBlock of a network.

    Attributes:
      blocks: L, of the network.
      numbers: of both scales.
      factors: how they follow from their numbers, each one of SCALED_BY.
      stochastic_depth, dropout: probabilities, see ResNet.
    """

    blocks: int
    numbers: tuple[float, float]
    factors: tuple[str, str]
    stochastic_depth: float
    dropout: float

    @property
    def learned(self) -> Scales:
        """The initial values of learned scales."""
        pairs = zip(self.numbers, self.factors, strict=True)
        return Scales(*(number if by == "learned" else None for number, by in pairs))

    def of_blocks(self, given: Scales, draws: NetworkDraws | None) -> PerBlock:
        """Returns scales that are not learned, and keys; arrays have a leading axis of L blocks.

        Args:
          given: replaces `numbers`.
          draws: None for the network of an evaluation.
        """
        triples = zip(given, self.numbers, self.factors, strict=True)
        shortcut, branch = (self._scale(*triple) for triple in triples)
        if self.stochastic_depth:
            # The l-th of L blocks is kept with probability 1 - l / L * stochastic_depth.
            kept = 1 - self.stochastic_depth * jnp.arange(1, self.blocks + 1) / self.blocks
            if draws is not None:
                kept = jax.random.bernoulli(jax.random.fold_in(draws.key, 0), kept)
            branch = kept.astype(jnp.float32) * (1 if branch is None else branch)
        if not self.dropout or draws is None:
            return Scales(shortcut, branch), None
        keys = jax.random.split(jax.random.fold_in(draws.key, 1), self.blocks)
        fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        return Scales(shortcut, branch), fold_in(keys, draws.examples_B)

    def _scale(self, given: ArrayLike | None, number: float, by: str) -> jax.Array | None:
        if by == "learned" or (by == "constant" and number == 1):
            return None
        factor = {"constant": 1.0, "1/sqrt(L)": self.blocks**-0.5, "1/L": 1 / self.blocks}[by]
        scale = jnp.asarray(number if given is None else given, jnp.float32) * factor
        return jnp.full((self.blocks,), scale)
