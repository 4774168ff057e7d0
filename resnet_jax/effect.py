"""Names the settings that have no effect in a run."""

from ml_collections import ConfigDict

from resnet_jax.settings import SETTINGS, get


def without_effect(config: ConfigDict, defaults: ConfigDict) -> list[str]:
    """Returns a sentence, without its full stop, about each setting that has no effect in a run.

    This is not an error: a study may set one value for all of its cells. Settings at their default
    are skipped, except for a schedule that never cuts or never reaches its rate.

    Args:
      config: resolved.
      defaults: of configs/base.py.
    """
    sentences = []
    for key, setting in SETTINGS.items():
        value = get(config, key)
        unmet = [condition for condition in setting.acts_if if not condition.holds(config)]
        if unmet and value != get(defaults, key):
            sentences.append(_no_effect(config, f"{key}={value!r}", unmet[0].keys))
    schedule = config.schedule
    if schedule.name == "step":
        late = tuple(b for b in schedule.boundaries if b >= config.steps)
        if late:
            sentences.append(_no_effect(config, f"schedule.boundaries={late!r}", ("steps",)))
        if not schedule.boundaries:
            sentences.append(_no_effect(config, "schedule.name='step'", ("schedule.boundaries",)))
    if schedule.warmup == "until_error" and schedule.warmup_window >= config.steps:
        # The training error is first checked after the last step.
        rate = f"schedule.rate={schedule.rate:g}"
        sentences.append(_no_effect(config, rate, ("schedule.warmup_window", "steps")))
    return sentences


def _no_effect(config: ConfigDict, setting: str, keys: tuple[str, ...]) -> str:
    because = " and ".join(f"{key}={get(config, key)!r}" for key in keys)
    return f"{setting} has no effect with {because}"
