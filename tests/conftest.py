"""What every test shares: one thread, no network, and the folder of real data for the few that read it."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import torch

torch.set_num_threads(1)  # tiny models: more threads only wait for each other
