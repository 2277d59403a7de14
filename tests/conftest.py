"""What every test shares: one thread, no network, and shapes that are checked against their annotations."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import signal
import sys
from pathlib import Path

import torch
from jaxtyping import install_import_hook

# Before any of them is imported: arguments, results and fields are checked against types and shapes at every call.
install_import_hook([f"dnge_compress.{name}" for name in ("encoder", "signals", "inr")], "type_checks.checked")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # tests look at their parts as well

torch.set_num_threads(1)  # tiny models: more threads only wait for each other

# A suite that a script starts in the background inherits an ignored SIGINT, and so would the commands that it tries.
signal.signal(signal.SIGINT, signal.default_int_handler)
