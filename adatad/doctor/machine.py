"""Checks of the machine: cores, memory, disks, limits, environment, network, clock.

Functions that look at the machine are apart from those that judge, which tests call with facts of other machines.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from adatad.doctor.findings import OK, PROBLEM, WARNING, Finding
from adatad.parallel.visible_gpus import hides_all

GIB = 2**30
LEAST_DISK_GIB, LEAST_MEMORY_GIB, LEAST_FILES = 2.0, 2.0, 1024
LEAST_INODES = 1000
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "9p", "afs")
FIXES = {"temporary files": "export TMPDIR=FOLDER", "staged videos": "--set data.stage_to=FOLDER"}
"""Ways to name another folder, by its purpose."""
CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")


class Place(NamedTuple):
    """A folder, there or to be made, and what its disk has. inodes: -1 if the file system doesn't count them."""

    purpose: str
    path: str
    free_bytes: int
    inodes: int
    writable: bool
    kind: str


def cores() -> tuple[int, float | None]:
    """Return the cores that this process may run on, and how many of them a cgroup grants (None: all)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = (_read(CGROUP / "cpu.max") or "max").split()
    if quota[0] == "max" or len(quota) < 2:
        # cgroup v1 has the quota in two files.
        old = _read(CGROUP / "cpu/cpu.cfs_quota_us"), _read(CGROUP / "cpu/cpu.cfs_period_us")
        quota = [old[0], old[1]] if old[0] and old[1] and int(old[0]) > 0 else ["max", "1"]
    return allowed, None if quota[0] == "max" else int(quota[0]) / int(quota[1])


def memory_bytes() -> dict[str, int]:
    """Return the bytes of "total", "available" and "swap" memory, and the "limit" of a cgroup if it has one."""
    lines = (line.split() for line in (_read(Path("/proc/meminfo")) or "").splitlines())
    found = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) >= 2}
    facts = {
        "total": found.get("MemTotal", 0),
        "available": found.get("MemAvailable", 0),
        "swap": found.get("SwapTotal", 0),
    }
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(CGROUP / name)
        # cgroup v1 says about 2^63 if there is no limit.
        if text and text.isdigit() and int(text) < 1 << 60:
            facts["limit"] = int(text)
    return facts


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def check_cores(allowed: int, quota: float | None, workers: int | None, threads: str | None) -> Iterator[Finding]:
    """Check that cores suffice. workers: data.workers of the spec; threads: OMP_NUM_THREADS."""
    usable = min(allowed, quota) if quota else allowed
    text = f"{allowed} cores" + (f", of which a cgroup grants {quota:g}" if quota and quota < allowed else "")
    if workers is not None and workers > max(usable, 1):
        fix = f"--set data.workers={max(int(usable), 1)}"
        yield Finding("CPU", WARNING, f"data.workers {workers} for each rank are more than the {text}", fix)
    # torch counts the cores of the machine, not those that a cgroup grants.
    elif quota and quota < 0.75 * allowed and threads is None:
        fix = f"export OMP_NUM_THREADS={max(int(quota), 1)}"
        yield Finding(
            "CPU", WARNING, f"{text}: torch starts a thread for each core, and they wait for one another", fix
        )
    else:
        yield Finding("CPU", OK, text)


def check_memory(facts: Mapping[str, int]) -> Iterator[Finding]:
    """Check that host memory suffices to start. facts: of `memory_bytes`."""
    if not facts["total"]:
        yield Finding("memory", WARNING, "memory could not be checked: the system has no /proc/meminfo")
        return
    limit = min(facts["total"], facts.get("limit", facts["total"]))
    text = f"{facts['available'] / GIB:.1f} GiB of {facts['total'] / GIB:.1f} are available"
    if limit < facts["total"]:
        text += f", a cgroup allows {limit / GIB:.1f}"
    if min(limit, facts["available"]) < LEAST_MEMORY_GIB * GIB:
        least = f"{LEAST_MEMORY_GIB:g} GiB at least"
        fix = f"end other processes, or ask for more (--mem of Slurm, --memory of a container): {least}"
        yield Finding("memory", PROBLEM, text, fix)
    else:
        yield Finding("memory", OK, text)


def place(purpose: str, path: str) -> Place:
    """Return the facts of a path's disk, by the nearest folder above it that exists."""
    there = Path(path).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    facts = os.statvfs(there)
    read_only = bool(facts.f_flag & os.ST_RDONLY)
    # btrfs and others have no fixed number of inodes, and report 0.
    inodes = facts.f_favail if facts.f_files else -1
    # root passes os.access also on a read-only mount.
    writable = not read_only and os.access(there, os.W_OK)
    return Place(purpose, str(path), facts.f_bavail * facts.f_frsize, inodes, writable, file_system_of(there))


def file_system_of(path: Path) -> str:
    """Return the kind of file system that a path lies on, by the longest mount point above it."""
    best, kind = "", ""
    for line in (_read(Path("/proc/self/mountinfo")) or "").splitlines():
        before, _, after = line.partition(" - ")
        # mountinfo: the fifth word is the mount point, with spaces escaped; the kind follows " - ".
        mount = before.split()[4].replace("\\040", " ")
        # Not by prefix alone: /data isn't above /database.
        inside = mount == "/" or str(path) == mount or str(path).startswith(mount + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, after.split()[0]
    return kind


def check_place(where: Place, needed_bytes: float = LEAST_DISK_GIB * GIB, written: bool = True) -> Iterator[Finding]:
    """Check a folder's disk for room, rights and speed. written: whether a run writes there."""
    name = f"{where.purpose} {where.path}"
    if written and not where.writable:
        fix = FIXES.get(where.purpose, "name a folder of yours: --set run.root=FOLDER")
        yield Finding("disk", PROBLEM, f"{name}: can't be written to (read-only, or no right to)", fix)
        return
    if written and where.free_bytes < needed_bytes:
        text = f"{name}: {where.free_bytes / GIB:.1f} GiB are free, {needed_bytes / GIB:.1f} are needed"
        yield Finding("disk", PROBLEM, text, "make room, or name another folder")
    elif written and 0 <= where.inodes < LEAST_INODES:
        yield Finding("disk", PROBLEM, f"{name}: room for {where.inodes} more files alone", "delete small files there")
    elif where.kind in NETWORK_FILE_SYSTEMS:
        fix = "--set data.stage_to=FOLDER_ON_THIS_MACHINE copies them once" if where.purpose == "videos" else ""
        level = WARNING if where.purpose == "videos" else OK
        yield Finding("disk", level, f"{name}: on a network file system ({where.kind}), where reading may be slow", fix)
    else:
        yield Finding("disk", OK, f"{name}: {where.free_bytes / GIB:.0f} GiB free")


def check_shared_memory(free_bytes: int | None, needed_bytes: float, workers: int) -> Iterator[Finding]:
    """Check that /dev/shm holds what loader processes hand over. free_bytes: None if there is no /dev/shm."""
    if workers == 0:
        return  # the training process loads by itself
    if free_bytes is None:
        fix = "mount it, or --set data.workers=0"
        yield Finding("shared memory", PROBLEM, "/dev/shm isn't there, and loader processes need it", fix)
    elif free_bytes < needed_bytes:
        text = f"/dev/shm has {free_bytes / 2**20:.0f} MiB free; the windows of {workers} loader processes take "
        text += f"{needed_bytes / 2**20:.0f}, and loading would stand still"
        # Twice what is needed, rounded up to GiB.
        size = max(1, -(-int(2 * needed_bytes) // GIB))
        fix = f"start the container with --shm-size={size}g, or --set data.workers=0"
        yield Finding("shared memory", PROBLEM, text, fix)
    else:
        yield Finding("shared memory", OK, f"/dev/shm has {free_bytes / GIB:.1f} GiB free")


def shared_memory_free() -> int | None:
    """Return the free bytes of /dev/shm; None if there is none."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def limits() -> dict[str, int]:
    """Return the soft limits by ulimit's letter; -1: unlimited."""
    names = {"n": "RLIMIT_NOFILE", "v": "RLIMIT_AS", "l": "RLIMIT_MEMLOCK", "u": "RLIMIT_NPROC", "f": "RLIMIT_FSIZE"}
    return {
        letter: resource.getrlimit(getattr(resource, name))[0]
        for letter, name in names.items()
        if hasattr(resource, name)
    }


def check_limits(soft: Mapping[str, int], pins_memory: bool) -> Iterator[Finding]:
    """Check soft limits. pins_memory: whether the spec keeps tensors in pinned host memory."""
    found = False
    for letter, least, text, fix in (
        ("n", LEAST_FILES, "open files", "ulimit -n 4096"),
        ("u", 512, "processes and threads", "ulimit -u 4096"),
        ("v", 8 * GIB // 1024, "KiB of address space, and CUDA alone reserves many GiB", "ulimit -v unlimited"),
        ("f", 4 * GIB // 1024, "KiB in one file, and checkpoints may be larger", "ulimit -f unlimited"),
        ("l", 64 * 1024, "KiB of locked memory, and pinned host memory may not be had", "ulimit -l unlimited"),
    ):
        # Locked memory matters only where memory is pinned.
        if letter not in soft or soft[letter] < 0 or (letter == "l" and not pins_memory):
            continue
        # getrlimit counts bytes, ulimit KiB.
        value = soft[letter] // 1024 if letter in "vfl" else soft[letter]
        if value < least:
            found = True
            yield Finding(
                "limits", PROBLEM if letter in "vf" else WARNING, f"ulimit -{letter} allows {value} {text}", fix
            )
    if not found:
        yield Finding("limits", OK, "open files, processes, memory and file sizes are wide enough")


def check_locale(stdout: str, file_system: str) -> Iterator[Finding]:
    """Check that names beyond ASCII can be read and printed."""
    if file_system.lower().replace("-", "") != "utf8":
        text = f"file names are read as {file_system}: names of videos beyond ASCII aren't found"
        yield Finding("locale", PROBLEM, text, "export LC_ALL=C.UTF-8")
    elif stdout.lower().replace("-", "") not in ("utf8", "utf_8"):
        text = f"the terminal takes {stdout}: names beyond ASCII are printed as escapes"
        yield Finding("locale", WARNING, text, "export LC_ALL=C.UTF-8 (and unset PYTHONIOENCODING)")


LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def check_environment(environment: Mapping[str, str], allowed_cores: int) -> Iterator[Finding]:
    """Check environment variables for values that break or slow down training."""
    # Some of a launcher's variables, left over in a shell, make torch wait for ranks that never come.
    there = [name for name in LAUNCHER if name in environment]
    if there and any(not environment.get(name) for name in LAUNCHER):
        missing = [name for name in LAUNCHER if not environment.get(name)]
        text = f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} set, and {', '.join(missing)} missing or empty"
        yield Finding("environment", PROBLEM, text, f"unset {' '.join(LAUNCHER)}, or start ranks with torchrun")
    for name, least in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_PORT", 1)):
        value = environment.get(name)
        if value and not (value.isdigit() and int(value) >= least):
            yield Finding("environment", PROBLEM, f"{name}={value!r} is no number from {least}", f"unset {name}")
    # OpenMP takes a list, one number for each level of nesting; the first counts here.
    threads = environment.get("OMP_NUM_THREADS")
    if threads is not None and not (threads.replace(",", "").isdigit() and int(threads.split(",")[0]) >= 1):
        yield Finding("environment", WARNING, f"OMP_NUM_THREADS={threads!r} is no number", "unset OMP_NUM_THREADS")
    elif threads is not None and int(threads.split(",")[0]) > 2 * allowed_cores:
        text = f"OMP_NUM_THREADS={threads} for {allowed_cores} cores: threads wait for one another"
        yield Finding("environment", WARNING, text, f"export OMP_NUM_THREADS={allowed_cores}")
    if hides_all(environment.get("CUDA_VISIBLE_DEVICES")):
        text = f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']!r} hides every GPU"
        yield Finding("environment", WARNING, text, "unset CUDA_VISIBLE_DEVICES, unless a CPU is meant")
    if environment.get("LD_PRELOAD"):
        text = f"LD_PRELOAD={environment['LD_PRELOAD']}: foreign code in every process"
        yield Finding("environment", WARNING, text, "unset LD_PRELOAD if you don't need it")
    if environment.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        text = "CUDA_LAUNCH_BLOCKING is set: the host waits for every kernel"
        yield Finding("environment", WARNING, text, "unset CUDA_LAUNCH_BLOCKING")
    # Its new name, and the old one, which torch still reads.
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        pairs = [pair for pair in environment.get(name, "").split(",") if pair]
        if any(":" not in pair for pair in pairs):
            text = f"{name}={environment[name]!r} isn't key:value,key:value: torch refuses it at the first allocation"
            yield Finding("environment", PROBLEM, text, f"unset {name}, or {name}=expandable_segments:True")


def resolves(name: str, limit_seconds: float = 2.0) -> bool | None:
    """Return whether a host name has an address; None if there is no answer in time."""
    answer: list[bool] = []

    def ask() -> None:
        """Look the name up, however long that takes."""
        try:
            answer.append(bool(socket.getaddrinfo(name, None)))
        except OSError:
            answer.append(False)

    # getaddrinfo takes no time limit, and a broken resolver may hang for minutes.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit_seconds)
    return answer[0] if answer else None


def check_network(
    host: str, found: bool | None, interfaces: list[str], environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Check that ranks can find one another. found: whether the host name has an address, None if unknown."""
    if not found:
        how = "isn't answered for in time" if found is None else "has no address"
        text = f"this machine's own name, {host}, {how}: several ranks can't find one another by it"
        yield Finding(
            "network", WARNING, text, f"add '127.0.0.1 {host}' to /etc/hosts, or export GLOO_SOCKET_IFNAME=lo"
        )
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        # NCCL's syntax: "^eth" excludes, "=eth0" is exact, others are prefixes.
        wanted = [part.lstrip("^=") for part in environment.get(name, "").split(",") if part]
        excluded = environment.get(name, "").startswith("^")
        gone = [part for part in wanted if not any(there.startswith(part) for there in interfaces)]
        if gone and not excluded and len(gone) == len(wanted):
            text = f"{name}={environment[name]}: there is no such network interface; there are {', '.join(interfaces)}"
            yield Finding("network", PROBLEM, text, f"unset {name}")
    if found:
        yield Finding("network", OK, f"{host} has an address; interfaces {', '.join(interfaces)}")


def interface_names() -> list[str]:
    """Return the names of the network interfaces."""
    return [name for _, name in socket.if_nameindex()]


def check_clock(now: float, newest_source: float, file_clock: float | None) -> Iterator[Finding]:
    """Check the clock. All in seconds since 1970: now, this program's newest file, and a file that was just written."""
    fix = "set the clock (timedatectl set-ntp true)"
    # A day of grace: archives don't keep time zones.
    if now < newest_source - 86400:
        text = f"the clock says {time.strftime('%F %T', time.localtime(now))}, earlier than this program was written"
        yield Finding("clock", PROBLEM, text, fix)
    elif file_clock is not None and abs(now - file_clock) > 60:
        text = f"the disk's clock and this machine's differ by {abs(now - file_clock):.0f} s"
        yield Finding("clock", WARNING, text, fix)


def file_clock() -> float:
    """Return the time that the disk gives a file written now, in seconds since 1970."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"now")
        file.flush()
        return os.stat(file.name).st_mtime


def newest_source() -> float:
    """Return the time of this program's newest file, in seconds since 1970."""
    return max(path.stat().st_mtime for path in Path(__file__).resolve().parents[1].glob("*.py"))


def encodings() -> tuple[str, str]:
    """Return the encodings of stdout and of file names."""
    return getattr(sys.stdout, "encoding", None) or "ascii", sys.getfilesystemencoding()
