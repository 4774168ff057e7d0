"""One network of the training-step benchmark: the programs take turns, and a row says how fast."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from benchmarks import results
from benchmarks.compiled import bound
from benchmarks.peers import flax_example, ours
from benchmarks.peers.ours import Program, Work
from resnet_jax.data import sets
from resnet_jax.networks import resnet, summary

OURS = "resnet_jax"
PEERS = ("flax", "torch", "torch_loop")
HEADINGS = ["network", OURS, *PEERS, *(f"ours / {name}" for name in PEERS),
            "TFLOP/s", "of the peak", "of the memory bound"]  # fmt: skip


def makers(peers: Sequence[str], torch_mode: str) -> dict[str, Callable[[Work], Program]]:
    """Returns what makes each program; PyTorch is imported where it is among the peers.

    Args:
      peers: those that can run here.
      torch_mode: of torch.compile, or "none"; of the peer `torch`.
    """
    found: dict[str, Callable[[Work], Program]] = {OURS: ours.make}
    if "flax" in peers:
        found["flax"] = flax_example.make
    if "torch" in peers or "torch_loop" in peers:
        from benchmarks.peers import torch_example

        if "torch" in peers:
            found["torch"] = lambda work: torch_example.make(work, torch_mode)
        if "torch_loop" in peers:
            found["torch_loop"] = torch_example.make_loop
    return found


def measure(
    config: ConfigDict,
    made_by: Mapping[str, Callable[[Work], Program]],
    rounds: int,
    steps: int,
    bandwidth: float,
    peak: float | None,
) -> dict[str, Any]:
    """Returns a row of the table, ready for JSON.

    Args:
      config: resolved; its network is measured.
      made_by: see makers().
      rounds: how often the programs take turns.
      steps: that each takes in a round, at least.
      bandwidth: GB/s of the device's memory.
      peak: TFLOP/s of the device, where it is known.
    """
    row = _describe(config) | _take_turns(config, made_by, rounds, steps)
    derived: dict[str, dict[str, float | None]] = {}
    for name, rates in row["images_a_second"].items():
        steps_a_second = float(np.median(rates)) / config.batch_size
        tflops = row["flop_a_step"] * steps_a_second / 1e12
        bytes_a_second = row["bound_bytes_a_step"] * steps_a_second
        derived[name] = {
            "tflop_a_second": tflops,
            "share_of_peak": tflops / peak if peak else None,
            "share_of_memory_bound": bytes_a_second / (bandwidth * 1e9),
        }
    return row | {"derived": derived}


def _describe(config: ConfigDict) -> dict[str, Any]:
    shape = sets.image_shape(config.data)
    network = summary.summarize(resnet.from_config(config.model), shape)
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
    config: ConfigDict, made_by: Mapping[str, Callable[[Work], Program]], rounds: int, steps: int
) -> dict[str, Any]:
    """Returns each program's rates, one a round, its seconds to the first step, its last loss."""
    work = ours.make_work(config)
    programs: dict[str, Program] = {}
    first: dict[str, float] = {}
    for name, make in made_by.items():
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
            began = time.perf_counter()
            losses[name] = program.run(times := -(-steps // program.at_once))
            images = times * program.at_once * config.batch_size
            rates[name].append(images / (time.perf_counter() - began))
    for name, loss in losses.items():
        if not math.isfinite(loss):
            logging.warning("%s: the loss is %s after the last round", name, loss)
    # JSON has neither NaN nor infinity.
    ends = {name: loss if math.isfinite(loss) else str(loss) for name, loss in losses.items()}
    return {"images_a_second": rates, "seconds_to_first_step": first, "last_loss": ends}


def show(row: Mapping[str, Any]) -> list[str]:
    """Returns a row's cells, in the order of HEADINGS; "-" for a program that did not run."""
    every, ours = row["images_a_second"], row["derived"][OURS]

    def ratio(name: str) -> str:
        return f"{np.median(every[OURS]) / np.median(every[name]):.2f}" if name in every else "-"

    share = ours["share_of_peak"]
    return [
        f"{row['family']} {row['depth']} {row['shortcut']}",
        *(results.spread(every.get(name, []), ",.0f") for name in (OURS, *PEERS)),
        *(ratio(name) for name in PEERS),
        f"{ours['tflop_a_second']:.3g}",
        "-" if share is None else f"{share:.1%}",
        f"{ours['share_of_memory_bound']:.1%}",
    ]
