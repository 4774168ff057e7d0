"""Runs SkyPilot's own parsers, in SkyPilot's environment, on our tasks and commands.

    .venv-skypilot/bin/python tests/launchers/skypilot_own.py QUESTION    # stdin: JSON

It starts nothing and contacts no cloud.
"""

import json
import sys

import click
import sky
from sky.client.cli import command
from sky.jobs import (
    recovery_strategy,  # noqa: F401 - registers the strategies
    state,
    utils,
)
from sky.schemas.api import responses
from sky.utils import registry


def parse_tasks(texts):
    """Returns tasks as SkyPilot parses them, or its errors."""
    return [_parse(text) for text in texts]


def _parse(text):
    try:
        task = sky.Task.from_yaml_str(text)
    except Exception as e:
        return {"refused": str(e)}
    (resources,) = task.resources
    strategy = resources.job_recovery["strategy"]
    return {
        "name": task.name,
        "machine": utils.generate_managed_job_cluster_name(task.name, 7),
        "nodes": task.num_nodes,
        "infra": resources.infra.to_str(),
        "accelerators": resources.accelerators,
        "spot": resources.use_spot,
        "disk_size": resources.disk_size,
        "recovery": resources.job_recovery,
        "strategy": registry.JOBS_RECOVERY_STRATEGY_REGISTRY.from_str(strategy).__name__,
        "mounts": {path: [s.source, s.mode.value] for path, s in task.storage_mounts.items()},
        "workdir": task.workdir,
        "setup": task.setup,
        "run": task.run,
    }


def parse_commands(commands):
    """Returns command lines as the `sky` program parses them."""
    parsed = []
    for words in commands:
        group = command.cli
        context = click.Context(group, info_name="sky")
        while isinstance(group, click.Group):
            name, group, words = group.resolve_command(context, list(words))
            context = click.Context(group, info_name=name, parent=context)
        rest = group.make_parser(context).parse_args(args=list(words))[0]
        parsed.append([group.name, {k: v for k, v in rest.items() if v is not None}])
    return parsed


def print_queue(jobs):
    """Returns jobs as `sky jobs queue --output=json` prints them."""
    records = [responses.ManagedJobRecord(**job) for job in jobs]
    return [record.model_dump(mode="json") for record in records]


def list_active(_):
    """Returns the states of jobs that have not ended."""
    return [status.value for status in state.ManagedJobStatus if not status.is_terminal()]


ANSWERS = {f.__name__: f for f in (parse_tasks, parse_commands, print_queue, list_active)}

if __name__ == "__main__":
    print(json.dumps(ANSWERS[sys.argv[1]](json.load(sys.stdin)), default=str))
