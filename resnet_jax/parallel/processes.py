"""Several processes as one run: how they meet, who writes, and how they agree.

Every process runs the same program on its share of the devices. Process 0 alone writes the run
folder; what it finds there, it tells the others.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from resnet_jax.errors import RunError, UserError
from resnet_jax.parallel import clusters

# A process that has not been heard of for so long is lost, and the others stop with a message.
HEARTBEAT_SECONDS = 30
_MESSAGE_BYTES = 1 << 16
_PATIENCE_SECONDS = 3600  # for one who reads or writes much before he meets the others
_meetings = itertools.count()
_PROXY = re.compile("(grpc|https?|all)_proxy", re.IGNORECASE)


def initialize_cluster() -> None:
    """Joins the processes that a cluster has started, where it was one; before any device is used.

    A job of a single process too: only then does JAX hear that it is about to be preempted.

    Raises:
      RunError: the others did not come, or what finds them is not installed.
    """
    has_libtpu = importlib.util.find_spec("libtpu") is not None
    cluster = clusters.detect(os.environ, pathlib.Path("/dev"), has_libtpu)
    if not cluster:
        return
    if cluster == "kubernetes" and importlib.util.find_spec("kubernetes") is None:
        raise RunError(
            "This is a Kubernetes job, and JAX finds its pods by the kubernetes package: "
            "pip install 'jax[k8s]', or train alone with --cluster=none."
        )
    _join(
        f"this {cluster} job (--cluster=none trains alone)",
        **clusters.arguments(cluster, os.environ),
    )


def initialize(coordinator: str, processes: int, process: int) -> None:
    """Joins the processes of a run that were started by hand; before anything asks for a device.

    Args:
      coordinator: HOST:PORT of process 0, which listens there.
      processes: how many there are.
      process: which of them this is, from 0.

    Raises:
      UserError: the values do not go together.
      RunError: the others did not come.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator} is not of the form HOST:PORT.")
    if not 0 <= process < processes:
        raise UserError(
            f"--process={process} is out of range; allowed is from 0 to {processes - 1} "
            f"(--processes={processes})."
        )
    # By default it would listen on every interface.
    os.environ.setdefault("JAX_COORDINATOR_BIND_ADDRESS", coordinator)
    _join(
        coordinator,
        coordinator_address=coordinator,
        num_processes=processes,
        process_id=process,
        cluster_detection_method="deactivate",
    )


def _join(meeting: str, **arguments: Any) -> None:
    try:
        with _without_proxies():
            jax.distributed.initialize(
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                # One that has failed waits so long for the others; then they hear that it is lost.
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
                **arguments,
            )
    except (RuntimeError, ValueError) as e:
        reason = str(e).split("\n")[0]
        raise RunError(f"The processes of {meeting} did not meet: {reason}") from e
    devices()
    if not is_primary():
        logging.set_verbosity(logging.WARNING)  # process 0 says it


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Hides the variables that name proxies: gRPC would look for the coordinator behind one.

    They are meant for the world outside, such as buckets, and stay in force for it.
    """
    proxies = {name: os.environ.pop(name) for name in [*os.environ] if _PROXY.fullmatch(name)}
    try:
        yield
    finally:
        os.environ.update(proxies)


def devices() -> list[jax.Device]:
    """Returns the devices of all processes.

    Raises:
      UserError: JAX_PLATFORMS allows none that this machine has.
      RunError: there is none that can be used.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as e:  # the latter, without a word, if there is no CUDA
        reason = str(e).split("\n")[0].split(" (set JAX_PLATFORMS")[0]
        wanted = jax.config.jax_platforms  # type: ignore[attr-defined]  # made at import
        if not wanted:
            raise RunError(f"JAX finds no device that it can use: {reason}.") from e
        raise UserError(
            f"JAX_PLATFORMS={wanted}, but JAX finds no such device here "
            f"({reason or 'it is absent, or JAX is installed without it; see requirements.txt'}); "
            f"without JAX_PLATFORMS it finds {_other_platform()}."
        ) from e


def _other_platform() -> str:
    """Returns the platform that JAX would choose by itself."""
    jax.config.update("jax_platforms", None)
    try:
        return jax.devices()[0].platform
    except (RuntimeError, AssertionError):
        return "none"


def is_primary() -> bool:
    """Whether this is process 0, the one that writes."""
    return jax.process_index() == 0


def is_distributed() -> bool:
    """Whether processes were joined, be it only one."""
    return jax.distributed.is_initialized()


def is_several() -> bool:
    """Whether more than one process was joined; asks for no device where none was."""
    return is_distributed() and jax.process_count() > 1


def from_primary(f: Callable[[], Any]) -> Any:
    """Returns what f() returns in process 0, where alone it is called; a JSON value.

    Raises:
      RunError: f raised; in process 0, what it raised.
    """
    if jax.process_count() == 1:
        return f()
    error: Exception | None = None
    answer: dict[str, Any] = {}
    if is_primary():
        try:
            answer = {"value": f()}
        except Exception as e:
            error, answer = e, {"error": str(e)[: _MESSAGE_BYTES // 16]}
    _meet()
    answer = json.loads(_from_text(multihost_utils.broadcast_one_to_all(_to_text(answer))))
    if error is not None:
        raise error
    if "error" in answer:
        raise RunError(f"Process 0 stopped: {answer['error']}")
    return answer["value"]


def _meet() -> None:
    """Waits until every process is here.

    Not on the devices: where one comes to a collective half a minute after the others, XLA has
    given up.
    """
    everyone = set(range(jax.process_count()))
    name = f"resnet_jax_{next(_meetings)}"
    ocp.multihost.sync_global_processes(name, timeout=_PATIENCE_SECONDS, processes=everyone)


def of_all(text: str) -> list[str]:
    """Returns the text that each process gives, in their order."""
    if jax.process_count() == 1:
        return [text]
    _meet()
    gathered = multihost_utils.process_allgather(_to_text(text))
    return [json.loads(_from_text(row)) for row in gathered]


def pick_rows(array: np.ndarray) -> np.ndarray:
    """Returns an array of which each process made the rows r with r % processes == process."""
    if jax.process_count() == 1:
        return array
    _meet()
    gathered = multihost_utils.process_allgather(array)
    rows = np.arange(len(array))
    return np.asarray(gathered)[rows % jax.process_count(), rows]


def put(tree: Any, shardings: Any) -> Any:
    """Lays host arrays, the same in every process, out on the devices.

    Args:
      tree: a pytree of arrays.
      shardings: one for all, or a pytree of the same structure.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def one(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, shardings)


def fetch(tree: Any) -> Any:
    """Returns a pytree's arrays on the host, whole, in every process; all must ask for it."""
    leaves, structure = jax.tree.flatten(tree)
    fetched = [
        leaf
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        else multihost_utils.process_allgather(leaf, tiled=True)
        for leaf in leaves
    ]
    return jax.device_get(jax.tree.unflatten(structure, fetched))


def _to_text(value: Any) -> np.ndarray:
    text = json.dumps(value).encode()
    if len(text) > _MESSAGE_BYTES:
        raise ValueError(f"a message of {len(text)} bytes is too long")
    return np.frombuffer(text.ljust(_MESSAGE_BYTES), np.uint8)


def _from_text(array: Any) -> str:
    return bytes(np.asarray(array, np.uint8)).decode()
