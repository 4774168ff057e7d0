"""Do the features of a deep plain net transfer? Digits 0 to 4, then 40 examples of 5 to 9.

    python -m experiments.sweep --config=configs/transfer_digits.py:source \
        --workdir=runs/transfer_digits_source
    python -m experiments.sweep --config=configs/transfer_digits.py:runs/transfer_digits_source \
        --workdir=runs/transfer_digits

The first study trains plain and residual nets on half of the classes. The second one has little
data of the other half: it trains the same networks from scratch, fine-tunes the trained ones, and
trains a classifier alone on their frozen features. Every network is trained at its own best rate;
in the second study that has the lowest error on the examples that are left over, which are many.
"""

from ml_collections import ConfigDict

from configs import digits

SOURCE = "source"
_DEPTHS, _SHORTCUTS = (14, 32), ("none", "A")
_OLD, _NEW = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
_EXAMPLES = 40  # of the new classes to train on
RATES = (0.01, 0.03, 0.1)
_ALL = 709  # training examples of the new classes
# What differs from training from scratch.
VARIANTS = {
    "scratch": {},
    "fine_tuned": {},
    "frozen": {"optimizer": {"rate_factors": (0.0, 0.0, 0.0, 0.0, 1.0)}},
}


def get_config(source: str = SOURCE) -> ConfigDict:
    """Returns the first study for "source", else the second one, from the study in `source`."""
    study = ConfigDict()
    study.base = digits.get_config("short")
    study.base.replicates = 10
    study.base.eval.every = 60
    study.base.checkpoint.every = 60
    study.base.log.signals.every = 0
    study.grid = ConfigDict({"model": {"depth": _DEPTHS, "shortcut": _SHORTCUTS}})
    study.exceptions = ConfigDict()
    study.tune = ConfigDict({"over": {"schedule": {"rate": RATES}}, "seeds": 2})
    study.tune.first_seed = 1000
    study.tune.by = "training_loss" if source == SOURCE else "validation_error"
    if source == SOURCE:
        study.base.data.classes = _OLD
        return study
    study.claims = ("8", "8b")
    study.base.data.classes = _NEW
    study.base.data.validation = _ALL - _EXAMPLES
    study.base.batch_size = _EXAMPLES
    study.grid.variant = tuple(VARIANTS)
    for name, changes in VARIANTS.items():
        if changes:
            study.exceptions[name] = {"when": {"variant": name}, "set": changes}
    for depth in _DEPTHS:
        for shortcut in _SHORTCUTS:
            cell = f"plain-{depth}" if shortcut == "none" else f"resnet-{depth}-{shortcut}"
            study.exceptions[f"from_{cell}"] = {
                "when": {
                    "variant": tuple(name for name in VARIANTS if name != "scratch"),
                    "model": {"depth": depth, "shortcut": shortcut},
                },
                "set": {"init": {"from": f"{source}/{cell}", "normalization": "kept"}},
            }
    return study
