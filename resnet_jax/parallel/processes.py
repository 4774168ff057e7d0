"""Several processes as one run: joining, barriers, and exchange of small values.

Every process runs the same program on its own devices. Process 0 alone writes the run folder, and
broadcasts what it reads there.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from numpy.typing import ArrayLike

from resnet_jax.errors import RunError, UserError
from resnet_jax.parallel import clusters
from resnet_jax.pytree import PyTree, Tree

T = TypeVar("T")
# After so long without a heartbeat a process counts as lost, and the others stop with a message.
HEARTBEAT_SECONDS = 30
_MESSAGE_BYTES = 1 << 16
_BARRIER_SECONDS = 3600  # long enough for a process that first reads or writes a lot
_barrier_numbers = itertools.count()
_PROXY = re.compile("(grpc|https?|all)_proxy", re.IGNORECASE)


def initialize_cluster() -> None:
    """Joins the processes that a cluster started, if one did; call it before using any device.

    Joins a job of a single process too, because only then JAX receives preemption notices.

    Raises:
      RunError: other processes are missing, or the kubernetes package is.
    """
    has_libtpu = importlib.util.find_spec("libtpu") is not None
    cluster = clusters.detect(os.environ, pathlib.Path("/dev"), has_libtpu)
    if not cluster:
        return
    if cluster == "kubernetes" and importlib.util.find_spec("kubernetes") is None:
        raise RunError(
            "This is a Kubernetes job, and JAX needs the kubernetes package to find its pods: "
            "pip install 'jax[k8s]', or train alone with --cluster=none."
        )
    _join(
        f"this {cluster} job (--cluster=none trains alone)",
        **clusters.arguments(cluster, os.environ),
    )


def initialize(coordinator: str, processes: int, process: int) -> None:
    """Joins a run's processes that were started by hand; call it before using any device.

    Args:
      coordinator: HOST:PORT on which process 0 listens.
      processes: number of processes.
      process: index of this process, from 0.

    Raises:
      UserError: a value is invalid.
      RunError: other processes are missing.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator} is not of the form HOST:PORT.")
    if not 0 <= process < processes:
        raise UserError(
            f"--process={process} is out of range; allowed is from 0 to {processes - 1} "
            f"(--processes={processes})."
        )
    # By default JAX listens on every interface.
    os.environ.setdefault("JAX_COORDINATOR_BIND_ADDRESS", coordinator)
    _join(
        coordinator,
        coordinator_address=coordinator,
        num_processes=processes,
        process_id=process,
        cluster_detection_method="deactivate",
    )


def _join(group: str, **arguments: Any) -> None:
    try:
        with _without_proxies():
            jax.distributed.initialize(
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                # How long a failed process waits for the others before they learn of the failure.
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
                **arguments,
            )
    except (RuntimeError, ValueError) as e:
        reason = str(e).split("\n")[0]
        raise RunError(f"The processes of {group} could not join: {reason}") from e
    devices()
    if not is_primary():
        logging.set_verbosity(logging.WARNING)  # process 0 logs for all


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    # gRPC would look for the coordinator behind a proxy. Later connections, such as those to
    # buckets, use the proxies again.
    proxies = {name: os.environ.pop(name) for name in [*os.environ] if _PROXY.fullmatch(name)}
    try:
        yield
    finally:
        os.environ.update(proxies)


def devices() -> list[jax.Device]:
    """Returns the devices of all processes.

    Raises:
      UserError: JAX_PLATFORMS names no device of this machine.
      RunError: JAX finds no usable device.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as e:  # an empty AssertionError if CUDA is absent
        reason = str(e).split("\n")[0].split(" (set JAX_PLATFORMS")[0]
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]  # defined at import
        if not platforms:
            raise RunError(f"JAX finds no usable device: {reason}.") from e
        raise UserError(
            f"JAX_PLATFORMS={platforms}, but JAX finds no such device here "
            f"({reason or 'it is absent, or JAX is installed without it; see requirements.txt'}); "
            f"without JAX_PLATFORMS it finds {_other_platform()}."
        ) from e


def _other_platform() -> str:
    jax.config.update("jax_platforms", None)
    try:
        return jax.devices()[0].platform
    except (RuntimeError, AssertionError):
        return "none"


def is_primary() -> bool:
    """Whether this is process 0, which alone writes the run folder."""
    return jax.process_index() == 0


def is_distributed() -> bool:
    """Whether this process joined a cluster or a coordinator, even as the only one."""
    return jax.distributed.is_initialized()


def is_several() -> bool:
    """Whether several processes joined; initialises no device if none did."""
    return is_distributed() and jax.process_count() > 1


def from_primary(f: Callable[[], T]) -> T:
    """Calls f in process 0 only and returns its result, a JSON value, in every process.

    Raises:
      RunError: f raised in process 0. Process 0 itself raises the original exception.
    """
    if jax.process_count() == 1:
        return f()
    error: Exception | None = None
    answer: dict[str, T | str] = {}
    if is_primary():
        try:
            answer = {"value": f()}
        except Exception as e:
            error, answer = e, {"error": str(e)[: _MESSAGE_BYTES // 16]}
    _barrier()
    received = json.loads(_from_text(multihost_utils.broadcast_one_to_all(_to_text(answer))))
    if error is not None:
        raise error
    if "error" in received:
        raise RunError(f"Process 0 stopped: {received['error']}")
    return received["value"]


def _barrier() -> None:
    # Not a collective on the devices: XLA gives up if one process is half a minute late.
    name = f"resnet_jax_{next(_barrier_numbers)}"
    processes = set(range(jax.process_count()))
    ocp.multihost.sync_global_processes(name, timeout=_BARRIER_SECONDS, processes=processes)


def of_all(text: str) -> list[str]:
    """Returns the texts of all processes, ordered by process."""
    if jax.process_count() == 1:
        return [text]
    _barrier()
    gathered = multihost_utils.process_allgather(_to_text(text))
    return [json.loads(_from_text(row)) for row in gathered]


def pick_rows(array: np.ndarray) -> np.ndarray:
    """Merges arrays of which each process computed the rows r with r % processes == process."""
    if jax.process_count() == 1:
        return array
    _barrier()
    gathered = multihost_utils.process_allgather(array)
    rows = np.arange(len(array))
    return np.asarray(gathered)[rows % jax.process_count(), rows]


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Puts host arrays, equal in every process, on the devices.

    Args:
      tree: a pytree of arrays.
      shardings: one sharding for all arrays, or a pytree of the same structure.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def one(array: ArrayLike, sharding: jax.sharding.Sharding) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


def fetch(tree: Tree) -> Tree:
    """Returns a pytree's full arrays on the host; every process must call it."""
    leaves, structure = jax.tree.flatten(tree)
    fetched = [
        leaf
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        else multihost_utils.process_allgather(leaf, tiled=True)
        for leaf in leaves
    ]
    return jax.device_get(jax.tree.unflatten(structure, fetched))


def _to_text(value: object) -> np.ndarray:
    text = json.dumps(value).encode()
    if len(text) > _MESSAGE_BYTES:
        raise ValueError(f"a message of {len(text)} bytes is too long")
    return np.frombuffer(text.ljust(_MESSAGE_BYTES), np.uint8)


def _from_text(array: ArrayLike) -> str:
    return bytes(np.asarray(array, np.uint8)).decode()
