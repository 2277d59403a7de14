"""A disk that is full: before a command begins, or by somebody else's doing in the middle of it.

The disk is a tmpfs of a few megabytes, mounted in a namespace of its own, which nobody but the trial sees. Where that
isn't allowed, a limit on the size of files takes its place; the row says which it was.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reliability_kills import COMMANDS, Command, result
from reliability_setting import FileWrites, Row, Setting, difference, dnge, forked, leftovers, picture

MUST = "exit code 2, the old result whole, nothing half written, the same result once there is room"
DISK_BYTES, PAGE = 8 << 20, 4096
POINTS = {"compress": 5, "apply": 3, "plan": 1, "place": 2, "vocabulary": 3, "run": 6}
NEW_NAMESPACE, NEW_USER, PRIVATE = 0x20000, 0x10000000, (1 << 18) | 0x4000  # CLONE_NEWNS, CLONE_NEWUSER, MS_…
MOST_TRIES = 5  # for each time that a command finds no room
BALLAST = "ballast"


@dataclass(frozen=True)
class Full:
    """When a disk is full: from the start, or from the file operation `moment` on; so many bytes are left."""

    left: int
    moment: int = -1

    def __str__(self) -> str:
        when = f"from file operation {self.moment} on" if self.moment >= 0 else "from the start"
        return f"{self.left:,} bytes free {when}"


def rows(setting: Setting) -> dict[str, Callable[[], Row]]:
    """A row per command."""
    return {f"`dnge {name}`": partial(_filled, setting, name) for name in POINTS}


def _filled(setting: Setting, name: str) -> Row:
    command, failed, stopped = COMMANDS[name], [], 0
    draw = random.Random(f"{setting.seed} disk {name}")
    can_mount = forked(partial(_on_small_disk, lambda disk: 0), setting.root).code == 0
    with setting.trial(*command.needs, "beside") as folder:
        before = picture(folder)
        writes = FileWrites()
        done = forked(partial(_counted, command, writes), folder, writes=writes)
        operations, whole = int(done.out.split()[-1]), result(folder, command.output)
        size = _size(folder / command.output)
        assert before
    points, tries = setting.many(POINTS[name]), 0
    while stopped + len(failed) < points and tries < MOST_TRIES * points:
        i, tries = tries, tries + 1
        if can_mount:
            full = Full(draw.randrange(size)) if i % 2 else Full(draw.randrange(2 * PAGE), draw.randrange(operations))
            work = partial(_on_small_disk, partial(_one, setting, command, whole, full))
        else:
            full = Full(draw.randrange(size // 4))
            work = partial(_limited, setting, command, whole, full)
        done = forked(work, setting.root, limit=120)
        stopped += "stopped" in done.out
        if done.code:
            failed.append(f"{full}: {(done.out.strip() or done.err.strip())[-300:]}")
    disk = "a tmpfs" if can_mount else "a limit on the size of files, for want of the right to mount a tmpfs"
    note = f"{disk}; {stopped} found no room, and where there was, the result is whole"
    return Row(part="disk", what="", must=MUST, tried=tries, failed=tuple(failed), note=note)


def _counted(command: Command, writes: FileWrites) -> int:
    code = dnge(*command.words)()
    print(writes.count)
    return code


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(-(-p.stat().st_size // PAGE) * PAGE for p in files)


def _on_small_disk(work: Callable[[Path], int]) -> int:
    """Do something in a folder that is a disk of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_NAMESPACE | (NEW_USER if user else 0)):
        return 1
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with tempfile.TemporaryDirectory() as place:
        if libc.mount(b"none", b"/", None, PRIVATE, None):
            return 1
        if libc.mount(b"tmpfs", place.encode(), b"tmpfs", 0, f"size={DISK_BYTES}".encode()):
            return 1
        try:
            return work(Path(place))
        finally:
            libc.umount2(place.encode(), 2)


def _limited(setting: Setting, command: Command, whole: dict[str, str], full: Full) -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (full.left, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return _one(setting, command, whole, full, None)


def _one(setting: Setting, command: Command, whole: dict[str, str], full: Full, disk: Path | None) -> int:
    with setting.trial(*command.needs, "beside", on=disk) as folder:
        before = picture(folder)
        fill = partial(_fill, folder.parent, full.left)
        if disk is not None and full.moment < 0:
            fill()
        writes = FileWrites(moment=full.moment, at=fill)
        done = forked(dnge(*command.words), folder, writes=writes)
        (folder.parent / BALLAST).unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if done.code:
            wrong = _after_failure(command, folder, before, done.code, done.errors, done.err)
            if wrong:
                return _told(wrong)
            print("stopped")
            done = forked(dnge(*command.words), folder)
        if done.code:
            return _told(f"with room, it ends with {done.code}: {done.said}")
        if wrong := difference(whole, result(folder, command.output)):
            return _told(f"with room, another result: {wrong}")
        return _told(f"half written: {left}") if (left := leftovers(folder)) else 0


def _after_failure(
    command: Command, folder: Path, before: dict[str, str], code: int, errors: list[str], err: str
) -> str:
    if code != 2 or len(errors) != 1 or "Traceback" in err:
        return f"exit code {code}, {len(errors)} lines: {err.strip()[-300:]}"
    if "No space left" not in errors[0] and "are free" not in errors[0] and "File too large" not in errors[0]:
        return f"another cause: {errors[0]}"
    is_job = command.output not in command.needs  # it has no old result, and keeps what is whole
    after = {k: v for k, v in picture(folder).items() if not (is_job and k.partition("/")[0] == command.output)}
    if wrong := difference(before, after):
        return f"touched or left: {wrong}"
    return f"half written: {left}" if (left := leftovers(folder)) else ""


def _told(wrong: str) -> int:
    print(wrong)
    sys.stdout.flush()
    return 1


def _fill(disk: Path, left: int) -> None:
    """Leave so many bytes of the disk free."""
    there = os.statvfs(disk)
    (disk / BALLAST).write_bytes(bytes(max(0, there.f_bavail * there.f_frsize - left)))
