"""What all refusals of weight files have in common."""

import pytest

from resnet_jax.errors import UserError
from resnet_jax.weight_files.files import read


def refusal(path):
    """Returns the one sentence that refuses a file, without the path."""
    with pytest.raises(UserError) as refused:
        read(path)
    text = str(refused.value)
    assert text.startswith(f"{path} ")
    assert text.endswith(".")
    assert text.isprintable()  # one line, and no codes for the terminal
    assert len(text) < len(str(path)) + 400
    return text.removeprefix(f"{path} ")
