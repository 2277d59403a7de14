"""What every test shares: one thread and no network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import torch

torch.set_num_threads(1)  # tiny models: more threads only wait for each other
