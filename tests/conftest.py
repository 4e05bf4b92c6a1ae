"""Settings of the test run."""

import os

import torch

# diffusers and transformers are used from what is installed: no test asks the network for a thing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Small tensors: threads would only compete with the other workers.
torch.set_num_threads(1)

# Files that take half a minute and more. Each belongs to one process (`--dist loadfile`), and
# begins before all others, so that no process works on alone at the end.
SLOW = (
    "tests/sd/test_run.py",
    "tests/editions/test_editions.py",
    "tests/editions/test_classroom.py",
    "tests/checks/test_robust.py",
    "tests/test_colab.py",
    "tests/test_wheel.py",
    "tests/digits/test_students.py",
    "tests/digits/test_shipped.py",
)


def pytest_collection_modifyitems(items):
    """The slow files first; everything else stays in its order."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(SLOW))
