"""`dnge env`: what is installed and on what it runs, for bug reports."""

from __future__ import annotations

import locale
import os
import platform
import re
import sys
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from dnge_compress import __version__
from dnge_compress.cli.output import print_json
from dnge_compress.core.document import Cell, Column, Table
from dnge_compress.core.terminal import show

PACKAGE = "dnge-compress"
SETTINGS = ("DNGE_", "HF_HUB_OFFLINE", "HF_HOME", "OMP_", "PYTORCH_", "CUDA_VISIBLE_DEVICES", "PYTHONUTF8")


def env(options: Namespace) -> None:
    """`dnge env`"""
    found = {PACKAGE: __version__, "python": platform.python_version()} | _installed() | _machine() | _settings()
    if options.json:
        print_json(found)
    else:
        rows = tuple((Cell(text=name, style="quiet"), Cell(text=value)) for name, value in found.items())
        show(Table(columns=(Column(kind="text"), Column(kind="text", is_long=True)), rows=rows))


def _installed() -> dict[str, str]:
    """What of our dependencies is there, extras included."""
    names = dict.fromkeys(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requires(PACKAGE) or ())
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, str]:
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "system": platform.platform(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "accelerators": ", ".join(devices) or "none",
        "encoding": f"{sys.getfilesystemencoding()}, {locale.getpreferredencoding(False)}",
    }


def _settings() -> dict[str, str]:
    """Variables that change what we do; nothing that may be a secret."""
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(SETTINGS) and "TOKEN" not in name}
