"""Health check of a job's nodes before training: one process a node looks, the supervisor judges the reports.

    srun --ntasks-per-node=1 python -m adatad.cluster.node_check FOLDER --disk /tmp

writes FOLDER/<host>.json on each node.

Looking needs torch and psutil; judging needs the standard library alone, as the supervisor does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from adatad.quantities import MAX_GIB, number

if TYPE_CHECKING:
    import torch

PRODUCTS = 6
"""Matrix products a device, of which the fastest counts."""
MAX_CLOCK_SECONDS = 30
"""Clocks further apart than this confuse time-outs, logs and Slurm's own credentials."""


@dataclass
class Report:
    """Findings on one node. problems: its own; exchange_error: why the exchange failed, whoever's fault."""

    host: str
    problems: list[str] = field(default_factory=list)
    devices: str = ""
    free_memory_gib: float = 0.0
    free_disk_gib: float = 0.0
    product_ms: float = 0.0
    clock_offset_seconds: float | None = None
    gbit_per_second: float | None = None
    exchange_error: str | None = None

    def line(self) -> str:
        """Return the findings in one line."""
        parts = [
            self.devices,
            f"{self.free_memory_gib:.1f} GiB of memory and {self.free_disk_gib:.1f} of disk free",
            f"matrix product {self.product_ms:.2f} ms",
        ]
        if self.clock_offset_seconds is not None:
            parts.append(f"clock {self.clock_offset_seconds:+.1f} s")
        if self.gbit_per_second is not None:
            parts.append(f"all-reduce {self.gbit_per_second:.1f} Gbit/s")
        return f"{self.host}: " + ", ".join([*parts, *self.problems])

    def write(self, folder: Path) -> None:
        """Write the report to the folder that all nodes share."""
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{self.host}.unfinished"
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(folder / f"{self.host}.json")


def examine(disk: Path, min_free_gib: float) -> Report:
    """Return the findings on this node alone. disk: a folder on the node's own disk."""
    report = Report(os.environ.get("SLURMD_NODENAME", socket.gethostname()))
    checks: tuple[Callable[[], None], ...] = (
        lambda: _devices(report, min_free_gib),
        lambda: _disk(report, disk, min_free_gib),
        lambda: _product(report),
    )
    for check in checks:
        try:
            check()
        except Exception as error:
            # Whatever a broken driver or disk raises is a finding, not a reason to give none.
            report.problems.append(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    return report


def _devices(report: Report, min_free_gib: float) -> None:
    """Count GPUs and their free memory; without any, that of the machine."""
    import psutil
    import torch

    # A torch without CUDA or ROCm uses no GPU, whatever the job has asked for.
    wanted = int(os.environ.get("SLURM_GPUS_ON_NODE", "0")) if torch.version.cuda or torch.version.hip else 0
    found = torch.cuda.device_count()
    report.devices = f"{found} GPUs ({torch.cuda.get_device_name(0)})" if found else "no GPU"
    if found < wanted:
        report.problems.append(f"{found} GPUs can be used of the job's {wanted}")
    # The least of all: every rank needs as much.
    free = [torch.cuda.mem_get_info(number)[0] for number in range(found)] or [psutil.virtual_memory().available]
    report.free_memory_gib = min(free) / 2**30
    if report.free_memory_gib < min_free_gib:
        where = f"GPU {free.index(min(free))}" if found else "the machine"
        report.problems.append(
            f"{report.free_memory_gib:.1f} GiB of memory of {where} are free; somebody else is on it?"
        )


def _disk(report: Report, disk: Path, min_free_gib: float) -> None:
    """Write, flush and read a megabyte."""
    probe, content = disk / f".adatad-{os.getpid()}", os.urandom(1 << 20)
    try:
        disk.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(content)
            # A full disk or one that has gone shows when the data leaves the page cache, not when it is written.
            os.fsync(file.fileno())
        if probe.read_bytes() != content:
            report.problems.append(f"{disk}: what is read isn't what was written")
        report.free_disk_gib = shutil.disk_usage(disk).free / 2**30
        if report.free_disk_gib < min_free_gib:
            report.problems.append(f"{disk}: {report.free_disk_gib:.1f} GiB are free")
    except OSError as error:
        report.problems.append(f"{disk} can't be written: {error}")
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _product(report: Report) -> None:
    """Time a fixed matrix product on each device; the slowest device's best time counts."""
    import torch

    times = []
    for index in range(max(torch.cuda.device_count(), 1)):
        gpu = torch.cuda.is_available()
        device = torch.device("cuda", index) if gpu else torch.device("cpu")
        size = 8192 if gpu else 512
        # Ones: each entry of the product is the size exactly, in bf16 too, so that one look tells right from wrong.
        matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if gpu else torch.float32)
        best = float("inf")
        for _ in range(PRODUCTS):
            began = time.perf_counter()
            product = matrix @ matrix
            if gpu:
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - began)
        if product[0, 0].item() != size:
            report.problems.append(f"device {index} computes wrong products")
        times.append(best)
    report.product_ms = 1000 * max(times)


def exchange(report: Report, node: int, nodes: int, seconds: float) -> None:
    """Compare clocks with the other nodes and time an all-reduce, if all nodes say that they have no problem."""
    import torch
    import torch.distributed as dist

    timeout = timedelta(seconds=seconds)
    gpu = torch.cuda.is_available() and not report.problems
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # The store comes first: it tells whether all are well, as a collective would hang on a node that isn't.
    store = dist.TCPStore(address, port, nodes, is_master=node == 0, timeout=timeout)
    store.set(f"well {node}", "no" if report.problems else "gpu" if gpu else "cpu")
    said = [store.get(f"well {other}").decode() for other in range(nodes)]
    if len(set(said)) == 1 and said[0] != "no":
        device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        dist.init_process_group(
            "nccl" if gpu else "gloo", store=store, rank=node, world_size=nodes, timeout=timeout,
            device_id=device if gpu else None,
        )  # fmt: skip
        report.clock_offset_seconds = _clock(node, nodes, device)
        if abs(report.clock_offset_seconds) > MAX_CLOCK_SECONDS:
            report.problems.append(f"its clock is {report.clock_offset_seconds:+.0f} s off the others'")
        report.gbit_per_second = _all_reduce(nodes, device)
        dist.destroy_process_group()
    # The store lives in the first node's process.
    store.set(f"left {node}", "")
    if node == 0:
        for other in range(nodes):
            store.get(f"left {other}")


def _clock(node: int, nodes: int, device: torch.device) -> float:
    """Return the seconds between this node's clock and the median of all."""
    import torch
    import torch.distributed as dist

    times = torch.zeros(nodes, dtype=torch.float64, device=device)
    # The first all-reduce connects the nodes, which takes a while; after it they read their clocks at the same moment.
    dist.all_reduce(times)
    times[node] = time.time()
    dist.all_reduce(times)
    return times[node].item() - statistics.median(times.tolist())


def _all_reduce(nodes: int, device: torch.device) -> float:
    """Return the Gbit/s that a node sends in an all-reduce, the best of four."""
    import torch
    import torch.distributed as dist

    # Large enough that the bandwidth counts, and not the delay of a message.
    megabytes = 256 if device.type == "cuda" else 16
    tensor = torch.zeros(megabytes << 18, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        dist.all_reduce(tensor)
        # On a GPU the call returns before the sum is there.
        tensor[0].item()
        best = min(best, time.perf_counter() - began)
    # A ring all-reduce sends each part 2 (n - 1) / n times; 8.388608e-3 Gbit are a MiB.
    return 2 * (nodes - 1) / nodes * megabytes * 8.388608e-3 / best


def judge(folder: Path, hosts: Sequence[str], slow_factor: float, min_gbit: float) -> dict[str, str]:
    """Return what is wrong with each bad host, by name; "" holds what is no single host's fault.

    slow_factor: times the median product time; min_gbit: Gbit/s of the all-reduce.
    """
    reports = {}
    for host in hosts:
        # A node without a report, or with one that its disk cut off, didn't answer.
        with suppress(OSError, ValueError, TypeError):
            reports[host] = Report(**json.loads((folder / f"{host}.json").read_text()))
    bad = {host: "didn't answer" for host in hosts if host not in reports}
    bad |= {host: "; ".join(report.problems) for host, report in reports.items() if report.problems}
    products = [report.product_ms for report in reports.values() if report.product_ms]
    # The lower median: of two nodes the faster one is the measure.
    usual = statistics.median_low(products) if products else 0.0
    for host, report in reports.items():
        # Relative to the job's other nodes: no table of cards is needed.
        if host not in bad and report.product_ms > slow_factor * usual:
            bad[host] = f"slow: a matrix product takes {report.product_ms:.2f} ms, elsewhere {usual:.2f}"
    if bad:
        # With a bad node the exchange fails for all, which says nothing of the others.
        return bad
    errors = {host: report.exchange_error for host, report in reports.items() if report.exchange_error}
    if errors:
        return {"": "the nodes can't reach one another: " + "; ".join(f"{h}: {text}" for h, text in errors.items())}
    slow = {h: r.gbit_per_second for h, r in reports.items() if (r.gbit_per_second or min_gbit) < min_gbit}
    if slow:
        return {"": f"all-reduce between the nodes is slower than {min_gbit:g} Gbit/s: {slow}"}
    return {}


def main() -> int:
    """Check the node that this runs on, write the report, and return 0 whatever was found: the supervisor judges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--disk", type=Path, default=Path("/tmp"), help="folder on the node's own disk")
    parser.add_argument(
        "--min-free-gib", type=number(0, MAX_GIB), default=2.0, help="of that disk, and of each GPU's memory"
    )
    parser.add_argument("--seconds", type=number(1, 86_400), default=120.0, help="for the exchange of nodes")
    args = parser.parse_args()
    node, nodes = int(os.environ.get("SLURM_NODEID", 0)), int(os.environ.get("SLURM_NNODES", 1))
    report = examine(args.disk, args.min_free_gib)
    if nodes > 1:
        # The report's content if this process is killed in the exchange, as NCCL does after its timeout.
        report.exchange_error = "didn't come back from it"
    report.write(args.folder)
    if nodes > 1:
        try:
            exchange(report, node, nodes, args.seconds / 2)
            report.exchange_error = None
        except Exception as error:
            report.exchange_error = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        report.write(args.folder)
    print(report.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
