"""Completion in real shells: what stands on the command line after Tab was pressed."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from reliability_setting import Row, Setting

MUST = "the word that was meant, after Tab"
ROOT = Path(__file__).resolve().parents[1]
READY = "ready>"
# What is typed before Tab, and the line that must stand there.
LINES = {
    "dnge compr": "dnge compress",
    "dnge compress --rat": "dnge compress --ratio",
    "dnge compress lla": "dnge compress llama",
    "dnge compress --recipe prune/he": "dnge compress --recipe prune/heads",
    "dnge run jobs/prune-r": "dnge run jobs/prune-recover",
    "dnge run job.y": "dnge run job.yaml",
    "dnge recipes sh": "dnge recipes show",
    "dnge recipes show lora/def": "dnge recipes show lora/default",
    "dnge apply pla": "dnge apply plan.json",
    "dnge plan llama --dt": "dnge plan llama --dtype",
    "dnge plan llama --dtype bf": "dnge plan llama --dtype bfloat16",
    "dnge completion ba": "dnge completion bash",
}
STARTS = {
    "bash": (("bash", "--norc", "--noprofile", "-i"), "PS1='{}'; bind 'set enable-bracketed-paste off'; source {}\n"),
    "zsh": (
        ("zsh", "-f", "-i"),
        "PS1='{}'; unset zle_bracketed_paste; autoload -U compinit; compinit -D; source {}; compdef _shtab_dnge dnge\n",
    ),
}


def rows(setting: Setting) -> dict[str, Callable[[], Row]]:
    """A row per shell that is there."""
    return {shell: partial(_completed, setting, shell) for shell in STARTS if shutil.which(shell)}


def _completed(setting: Setting, shell: str) -> Row:
    failed = []
    with setting.trial(*(p.name for p in setting.root.iterdir())) as folder:
        found = completed(shell, folder, tuple(LINES))
    for typed, wanted in LINES.items():
        if found[typed].rstrip().rstrip("/") != wanted:  # zsh takes a slash away again
            failed.append(f"`{typed}` became `{found[typed]}`, not `{wanted}`")
    return Row(part="shells", what="", must=MUST, tried=len(LINES), failed=tuple(failed))


def completed(shell: str, folder: Path, lines: tuple[str, ...]) -> dict[str, str]:
    """What stands on the command line of a shell, in a folder, after each of some lines was typed and Tab pressed."""
    script = folder / f"completion.{shell}"
    command = [sys.executable, "-m", "dnge_compress", "completion", shell]
    text = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    script.write_text(text.stdout, encoding="utf-8")
    arguments, start = STARTS[shell]
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(folder)
        os.environ.update(TERM="xterm", HOME=str(folder), COLUMNS="200")
        os.execvp(arguments[0], arguments)
    try:
        os.write(terminal, start.format(READY, script).encode())
        _heard(terminal, wait=1.5)
        return {line: _after_tab(terminal, line) for line in lines}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def _after_tab(terminal: int, line: str) -> str:
    os.write(terminal, f"{line}\t".encode())
    _heard(terminal)
    os.write(terminal, b"\x01: \n")  # to the line's beginning; what follows a colon is not carried out
    said = _heard(terminal)
    os.write(terminal, b"fc -ln -1 2>/dev/null\n")
    said = _heard(terminal)
    found = [part.strip() for part in said.splitlines() if part.strip().startswith(": ")]
    return found[-1].removeprefix(": ") if found else said[-200:]


def _heard(terminal: int, wait: float = 0.25) -> str:
    """What the shell says until it is silent for a while."""
    said, end = b"", time.monotonic() + 10
    while time.monotonic() < end and select.select([terminal], [], [], wait)[0]:
        said += os.read(terminal, 65536)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r", "", said.decode(errors="replace"))
