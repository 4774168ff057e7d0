"""Which settings go with a set: images that lie on the device, or pictures that are streamed."""

from typing import Any

from ml_collections import ConfigDict

from resnet_jax.data import sources
from resnet_jax.errors import UserError, check_choice, listing

VIEWS = ("center", "ten_crop", "fully_convolutional")  # of views.make_views


def check_data(config: ConfigDict, known: sources.Facts) -> None:
    """Raises UserError unless pictures and views are those that a config's set allows.

    Args:
      config: not yet resolved.
      known: of its data set.
    """
    data, evaluation = config.data, config.eval
    for name in evaluation.views:
        check_choice("eval.views", name, VIEWS)
    if not evaluation.views or len(set(evaluation.views)) < len(evaluation.views):
        raise UserError(
            f"eval.views={evaluation.views}; allowed are one or several of {listing(VIEWS)}, each "
            "once."
        )
    side, channels = known.image_shape[0], known.image_shape[2]
    if data.color and channels != 3:
        raise UserError(f"data.color=True needs three channels; {data.name} has {channels}.")
    if known.resident:
        if data.image_size not in (0, side):
            raise UserError(
                f"data.image_size={data.image_size}, but the images of {data.name} have {side} "
                f"pixels a side and are not resized; allowed are {side} and 0."
            )
        if evaluation.views != ("center",):
            raise UserError(
                f"eval.views={evaluation.views}, but there is one view of an image of {data.name}; "
                "allowed is ('center',)."
            )
        return
    size = data.image_size or side
    if data.mean == "pixel":
        raise UserError(
            f"data.mean='pixel', but the pictures of {data.name} differ in size; allowed are "
            "channel and none."
        )
    if data.pad:
        raise UserError(
            f"data.pad={data.pad}, but crops of {data.name} come from full-size pictures "
            "(data.crop); allowed is 0."
        )
    _check_bounds("data.scales", data.scales, size, 4096)
    _check_bounds("data.area", data.area, 1e-6, 1)
    _check_bounds("data.aspect", data.aspect, 0.01, 100)
    if evaluation.short_side < size:
        raise UserError(
            f"eval.short_side={evaluation.short_side} is smaller than the crops of {size} pixels; "
            f"allowed is at least {size}."
        )
    if not evaluation.scales or not all(
        isinstance(scale, int) and 32 <= scale <= 4096 for scale in evaluation.scales
    ):
        raise UserError(
            f"eval.scales={evaluation.scales} is out of range; allowed are whole numbers from 32 "
            "to 4096."
        )


def _check_bounds(key: str, value: tuple[Any, ...], lowest: float, highest: float) -> None:
    """Raises UserError unless `value` is (low, high) within bounds."""
    if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest:
        raise UserError(
            f"{key}={value} is out of range; allowed are two numbers from {lowest:g} to "
            f"{highest:g}, the smaller first."
        )
