"""What a benchmark ran on."""

import pathlib
import platform


def processor() -> str:
    """Returns the processor's name, as far as the system tells it."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
