"""Refuses networks whose settings contradict each other; resolve.py calls it."""

from ml_collections import ConfigDict

from resnet_jax.errors import UserError
from resnet_jax.networks.architectures import EXPANSION, STEMS, architecture, stem_convolutions
from resnet_jax.networks.nonlinearities import similarity


def check_model(model: ConfigDict) -> None:
    """Raises UserError, in one sentence, if a config's `model` contradicts itself.

    Args:
      model: each of its values is allowed by itself.
    """
    for refusal in (*_structure(model), *_plain(model), *_initialization(model)):
        raise UserError(refusal)


def _structure(model: ConfigDict) -> list[str]:
    arch = architecture(model.family, model.depth)
    refusals = []
    stages = tuple(range(1, len(arch.stage_sizes) + 1))
    if not all(stage in stages for stage in model.remat):
        refusals.append(
            f"model.remat={model.remat} names a stage that this network lacks; allowed is any "
            f"selection from {stages}."
        )
    strides = STEMS[model.stem] > 1
    if model.space_to_depth and not strides:
        refusals.append(
            "model.space_to_depth=True needs model.stem='imagenet' or 'deep', but it is "
            f"{model.stem!r}; allowed is False."
        )
    if model.space_to_depth and "stem" in model.same_padding:
        refusals.append(
            f"model.same_padding={tuple(model.same_padding)} has the stem, which model."
            "space_to_depth=True computes with symmetric padding; allowed is False."
        )
    padded = [name for name in ("stem", "pool") if name in model.same_padding]
    if padded and not strides:
        refusals.append(
            f"model.same_padding={tuple(model.same_padding)} has {' and '.join(padded)}, which "
            f"have stride 2 with model.stem='imagenet' or 'deep' only, but it is {model.stem!r}; "
            "allowed are 'blocks' and ()."
        )
    filters = arch.widened(model.width)
    ends = filters[0] * EXPANSION[arch.block]
    if model.shortcut == "A" and model.stem_filters > ends:
        refusals.append(
            f"model.stem_filters={model.stem_filters} are more channels than the first block "
            f"outputs, {ends}, and model.shortcut='A' can only add channels; allowed are 0 to "
            f"{ends}, or another shortcut."
        )
    inner = arch.inner_filters(model.width, model.bottleneck_width, model.groups)
    of_stem = [f for f, _, _ in stem_convolutions(model.stem, model.stem_filters or filters[0])]
    normed = tuple(dict.fromkeys((*of_stem, *filters, *inner)))
    if model.norm == "group" and any(number % model.norm_groups for number in normed):
        refusals.append(
            f"model.norm_groups={model.norm_groups} does not divide the filters of all stages, "
            f"{', '.join(map(str, normed))}; allowed are their common divisors."
        )
    if model.groups > 1 and model.nonlinearity == "crelu":
        refusals.append(
            f"model.groups={model.groups} would separate the two halves of model.nonlinearity="
            "'crelu'; allowed is 1, or another nonlinearity."
        )
    if model.nonlinearity == "crelu" and model.shortcut != "none" and model.activation == "post":
        refusals.append(
            "model.nonlinearity='crelu' doubles the channels after the addition of a residual "
            f"block, which its shortcut cannot match (model.shortcut={model.shortcut!r}); allowed "
            "is model.activation='pre' or model.shortcut='none'."
        )
    if model.nonlinearity == "tailored" and model.tailored_eta >= (highest := similarity(arch, 0)):
        refusals.append(
            f"model.tailored_eta={model.tailored_eta} is not reached with model.depth="
            f"{model.depth}, where even ReLU has {highest:.3g}; allowed is less than that."
        )
    return refusals


def _plain(model: ConfigDict) -> list[str]:
    """Returns the settings that leave nothing of a block without a shortcut."""
    if model.shortcut != "none":
        return []
    constant = {
        "model.zero_init_residual=True": model.zero_init_residual,
        "model.init='fixup'": model.init == "fixup",
        f"model.branch_scale={model.branch_scale}": model.branch_scale == 0,
    }
    refusals = [
        f"{setting} makes a plain net (model.shortcut='none') constant: every block's output "
        "starts at zero; allowed is another value, or a shortcut."
        for setting, chosen in constant.items()
        if chosen
    ]
    if model.stochastic_depth:
        refusals.append(
            f"model.stochastic_depth={model.stochastic_depth} drops branches, which leaves nothing "
            "of a plain net's block (model.shortcut='none'); allowed is 0."
        )
    return refusals


def _initialization(model: ConfigDict) -> list[str]:
    refusals = []
    if model.init == "looks_linear" and model.nonlinearity != "crelu":
        refusals.append(
            "model.init='looks_linear' needs model.nonlinearity='crelu', whose two halves it joins "
            f"again, but it is {model.nonlinearity!r}."
        )
    if model.init in ("orthogonal", "delta_orthogonal") and model.groups > 1:
        refusals.append(
            f"model.init={model.init!r} is orthogonal over all channels, but model.groups="
            f"{model.groups} separates them; allowed is model.groups=1, or another init."
        )
    if model.init == "fixup" and model.norm != "none":
        refusals.append(
            f"model.init='fixup' replaces the norm, but model.norm={model.norm!r}; allowed is "
            "model.norm='none'."
        )
    has_zero_kernels = model.init == "fixup" or (
        model.zero_init_residual and (model.activation == "pre" or model.norm == "none")
    )
    if model.weight_standardization and has_zero_kernels:
        cause = "init='fixup'" if model.init == "fixup" else "zero_init_residual=True"
        refusals.append(
            f"model.weight_standardization=True divides kernels by their deviation, but model."
            f"{cause} starts some at 0; start at model.branch_scale=0 with "
            "model.branch_scale_by='learned' instead."
        )
    return refusals
