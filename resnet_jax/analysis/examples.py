"""What a trained network computes for every example of a split, or for picture files."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.allowed import check_choice
from resnet_jax.data import datasets
from resnet_jax.data.sets import DATA_SETS
from resnet_jax.data.splits import Split
from resnet_jax.data.views import VIEWS, Views, make_views
from resnet_jax.errors import UserError
from resnet_jax.execution import Execution, decide
from resnet_jax.networks.features import features
from resnet_jax.parallel import mesh as meshes
from resnet_jax.parallel.processes import put
from resnet_jax.pytree import PyTree
from resnet_jax.settings import OWN_DATA
from resnet_jax.state import Variables
from resnet_jax.trained import Trained

if TYPE_CHECKING:
    from resnet_jax.data.pictures import Files

_OTHER_COPY = "the run was trained on another copy of these pictures"
SPLITS = ("train", "validation", "test")
# Maps the variables and the views of a batch, see data.splits.EvalBatch.groups, to arrays with a
# leading axis of examples.
Function = Callable[[Variables, tuple[jax.Array, ...]], PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Examples of a run's data set, or picture files prepared like them.

    Attributes:
      split: reads them.
      views: of each image.
      execution: of the run, for one seed.
      batch_size: see Split.views.
      note: a caveat about the data, or empty.
    """

    split: Split
    views: Views
    execution: Execution
    batch_size: int
    note: str = ""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.split)


@contextlib.contextmanager
def of_split(run: Trained, split: str = "test", view: str = "center") -> Iterator[Examples]:
    """Opens a split of the data set that a network was trained on.

    Args:
      run: the network; its config names the data set.
      split: one of SPLITS; "train" is without the validation split.
      view: one of data.views.VIEWS; resident sets have "center" only.

    Raises:
      UserError: the split is unknown or empty, the set has no such view, or the data set is
        missing, broken or not the one that the run was trained on. Another copy of ImageNet
        is allowed; the note says so.
    """
    config = run.config
    check_choice("split", split, SPLITS)
    check_choice("view", view, VIEWS[:1] if DATA_SETS[config.data.name].resident else VIEWS)
    execution = _execution(run)
    with contextlib.closing(datasets.open_set(config.data, execution.mesh)) as data:
        examples = {"train": data.train, "validation": data.validation, "test": data.test}[split]
        if not len(examples):
            raise UserError(
                f"split={split!r} of this run has no examples (data.validation="
                f"{config.data.validation})."
            )
        note = data.note
        if DATA_SETS[config.data.name].resident or config.data.name in OWN_DATA:
            run.check_data(data.content)
        elif not run.is_of(data.content):
            note = "; ".join(filter(None, (note, _OTHER_COPY)))
        views = make_views(view, config.data, config.eval)
        yield Examples(examples, views, execution, execution.eval_batch_size, note)


@contextlib.contextmanager
def of_files(run: Trained, files: "Files") -> Iterator[Examples]:
    """Opens picture files, prepared as in evaluation; see data/pictures.py."""
    from resnet_jax.data import pictures  # imported here: digits need no decoder

    config, execution = run.config, _execution(run)
    with pictures.opened(files, config.data, execution.mesh) as split:
        views = pictures.views_of(config.data, config.eval)
        yield Examples(split, views, execution, min(execution.eval_batch_size, len(files)))


def _execution(run: Trained) -> Execution:
    config = run.config.copy_and_resolve_references()
    config.replicates, config.seed = 1, run.seed
    return decide(config, jax.devices())


def features_of(run: Trained, names: Sequence[str], mean: bool = False) -> Function:
    """Returns the function, for `outputs`, whose values are float32 {name: (B, ...)}.

    Args:
      run: the network.
      names: some of `networks.features.endpoints`; of the first view of each image.
      mean: whether endpoints with positions are averaged over them.

    Raises:
      UserError: as Trained.normalization.
    """
    normalization = run.normalization

    def of(variables: Variables, groups: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
        images_BHWC = normalization(groups[0][:, 0])
        found = features(run.model, variables, images_BHWC, names)
        exact = {name: array.astype(jnp.float32) for name, array in found.items()}
        return {
            name: array.mean(axis=(1, 2)) if mean and array.ndim == 4 else array
            for name, array in exact.items()
        }

    return of


def outputs(
    run: Trained, examples: Examples, function: Function
) -> Generator[tuple[np.ndarray, PyTree], None, None]:
    """Evaluates a function on every example exactly once, on all devices.

    All batches of views of one shape share a compiled program.

    Yields:
      (labels, int32 (B,), and the function's NumPy arrays (B, ...)) of each batch, without padding.
    """
    compute = jax.jit(function)
    variables = put(run.variables, meshes.everywhere(examples.execution.mesh))
    with contextlib.closing(examples.split.views(examples.views, examples.batch_size)) as batches:
        for batch in batches:
            mask = np.asarray(batch.mask)
            arrays = compute(variables, batch.groups)
            rows = jax.tree.map(lambda array, mask=mask: np.asarray(array)[mask], arrays)
            yield np.asarray(batch.labels)[mask], rows
