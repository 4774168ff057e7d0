"""Measures one network of the training-step benchmark: the programs take turns."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from benchmarks import results
from benchmarks.compiled import bound
from benchmarks.peers import flax_example, ours
from benchmarks.peers.ours import Program, Work
from resnet_jax.data import sets
from resnet_jax.networks import builders, summary

OURS = "resnet_jax"
PEERS = ("flax", "torch", "torch_loop")
HEADINGS = ["network", OURS, *PEERS, *(f"ours / {name}" for name in PEERS),
            "TFLOP/s", "of the peak", "of the memory bound"]  # fmt: skip


def makers(peers: Sequence[str], torch_mode: str) -> dict[str, Callable[[Work], Program]]:
    """Returns the function that makes each program; PyTorch is imported only if it is a peer.

    Args:
      peers: the peers that can run here.
      torch_mode: torch.compile's mode for the peer `torch`, or "none".
    """
    functions: dict[str, Callable[[Work], Program]] = {OURS: ours.make}
    if "flax" in peers:
        functions["flax"] = flax_example.make
    if "torch" in peers or "torch_loop" in peers:
        from benchmarks.peers import torch_example

        if "torch" in peers:
            functions["torch"] = lambda work: torch_example.make(work, torch_mode)
        if "torch_loop" in peers:
            functions["torch_loop"] = torch_example.make_loop
    return functions


def measure(
    config: ConfigDict,
    makers: Mapping[str, Callable[[Work], Program]],
    rounds: int,
    steps: int,
    bandwidth: float,
    peak: float | None,
) -> results.Row:
    """Returns a row of the table, ready for JSON.

    Args:
      config: resolved; its network is measured.
      makers: the function that makes each program; see makers().
      rounds: the number of rounds.
      steps: steps per round, at least.
      bandwidth: the device's memory bandwidth in GB/s.
      peak: the device's peak TFLOP/s, or None if it is unknown.
    """
    row = _describe(config) | _take_turns(config, makers, rounds, steps)
    derived: dict[str, dict[str, float | None]] = {}
    for name, rates in row["images_a_second"].items():
        steps_per_second = float(np.median(rates)) / config.batch_size
        tflops = row["flop_a_step"] * steps_per_second / 1e12
        bytes_per_second = row["bound_bytes_a_step"] * steps_per_second
        derived[name] = {
            "tflop_a_second": tflops,
            "share_of_peak": tflops / peak if peak else None,
            "share_of_memory_bound": bytes_per_second / (bandwidth * 1e9),
        }
    return row | {"derived": derived}


def _describe(config: ConfigDict) -> results.Row:
    shape = sets.image_shape(config.data)
    network = summary.summarize(builders.from_config(config.model), shape)
    traffic = bound.traffic(flax_example.network(config.model), shape)
    return {
        "family": config.model.family,
        "depth": config.model.depth,
        "shortcut": config.model.shortcut,
        "parameters": network.parameters,
        "flop_a_step": 3 * 2 * network.mult_adds * config.batch_size,
        "bound_bytes_a_step": traffic.bytes_a_step(config.batch_size, config.model.dtype),
    }


def _take_turns(
    config: ConfigDict, makers: Mapping[str, Callable[[Work], Program]], rounds: int, steps: int
) -> results.Row:
    """Returns each program's rate per round, seconds to the first step and last loss."""
    work = ours.make_work(config)
    programs: dict[str, Program] = {}
    first: dict[str, float] = {}
    for name, make in makers.items():
        began = time.perf_counter()
        programs[name] = make(work)
        programs[name].run(1)
        first[name] = time.perf_counter() - began
        logging.info("%s: the first step took %.0f s", name, first[name])
    rates: dict[str, list[float]] = {name: [] for name in programs}
    losses: dict[str, float] = {}
    for _ in range(rounds):
        for name, program in programs.items():
            program.run(program.ahead)
            dispatches = -(-steps // program.at_once)
            began = time.perf_counter()
            losses[name] = program.run(dispatches)
            seconds = time.perf_counter() - began
            rates[name].append(dispatches * program.at_once * config.batch_size / seconds)
    for name, loss in losses.items():
        if not math.isfinite(loss):
            logging.warning("%s: the loss is %s after the last round", name, loss)
    # JSON has neither NaN nor infinity.
    last = {name: loss if math.isfinite(loss) else str(loss) for name, loss in losses.items()}
    return {"images_a_second": rates, "seconds_to_first_step": first, "last_loss": last}


def show(row: results.Row) -> list[str]:
    """Returns a row's cells, in the order of HEADINGS; "-" for a program that did not run."""
    rates, ours = row["images_a_second"], row["derived"][OURS]

    def ratio(name: str) -> str:
        return f"{np.median(rates[OURS]) / np.median(rates[name]):.2f}" if name in rates else "-"

    share = ours["share_of_peak"]
    return [
        f"{row['family']} {row['depth']} {row['shortcut']}",
        *(results.spread(rates.get(name, []), ",.0f") for name in (OURS, *PEERS)),
        *(ratio(name) for name in PEERS),
        f"{ours['tflop_a_second']:.3g}",
        "-" if share is None else f"{share:.1%}",
        f"{ours['share_of_memory_bound']:.1%}",
    ]
