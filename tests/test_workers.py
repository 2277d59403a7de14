"""Workers end with whoever started them, and the first failure ends the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnge_compress.zoo.workers import each_done

SCRIPT = """
import sys, time
from pathlib import Path
from dnge_compress.zoo.workers import each_done

def work(path):
    import os
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    list(each_done(1, work, [(sys.argv[1],)]))
"""


def test_results_come_from_other_processes() -> None:
    assert sorted(each_done(1, abs, [(-1,), (2,)])) == [1, 2]


def test_a_failure_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(each_done(1, int, [("x",)]))


def test_a_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    script, told = tmp_path / "job.py", tmp_path / "pid"
    script.write_text(SCRIPT)
    root = str(Path(__file__).resolve().parents[1])
    parent = subprocess.Popen([sys.executable, str(script), str(told)], env=os.environ | {"PYTHONPATH": root})
    deadline = time.time() + 60
    while not (told.is_file() and told.read_text()) and time.time() < deadline:
        time.sleep(0.1)
    worker = int(told.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.time() + 20
    while Path(f"/proc/{worker}").exists() and time.time() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{worker}").exists()
