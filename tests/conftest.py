"""What every test shares: one thread, no network, and the folder of real data for the few that read it."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import pytest
import torch

torch.set_num_threads(1)  # tiny models: more threads only wait for each other

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder DNGE_DATA (default: ../shared/data). Skips where it is absent, fails where DNGE_DATA is wrong."""
    named = os.environ.get("DNGE_DATA")
    folder = Path(named) if named else DEFAULT_DATA
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"DNGE_DATA names '{folder}', which is no folder")
    pytest.skip(f"no data sets at {folder}; set DNGE_DATA to the folder that holds them")
