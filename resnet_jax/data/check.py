"""Which settings go with a set: images that lie on the device, or pictures that are streamed."""

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
    if not isinstance(evaluation.views, (tuple, list)):
        raise UserError(f"eval.views={evaluation.views!r} is not a tuple of {listing(VIEWS)}.")
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
    size = 1 if known.resident else data.image_size or side
    _check_order("data.scales", data.scales, size)
    _check_order("data.area", data.area)
    _check_order("data.aspect", data.aspect)
    if not evaluation.scales:
        raise UserError("eval.scales=() is empty; allowed is at least one short side in pixels.")
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
    if evaluation.short_side < size:
        raise UserError(
            f"eval.short_side={evaluation.short_side} is smaller than the crops of {size} pixels; "
            f"allowed is at least {size}."
        )


def _check_order(key: str, value: tuple[float, float], lowest: float = 0) -> None:
    """Raises UserError unless `value` is (low, high), and low at least `lowest`."""
    if not lowest <= value[0] <= value[1]:
        above = f", of at least {lowest:g} pixels, the size of the crops" if lowest > 1 else ""
        raise UserError(
            f"{key}={value} is out of range; allowed are two numbers{above}, the smaller first."
        )
