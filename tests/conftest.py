"""Settings of the test run."""

import os

import torch

# diffusers and transformers are used from what is installed: no test asks the network for a thing.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Small tensors: threads would only compete with the other workers.
torch.set_num_threads(1)
