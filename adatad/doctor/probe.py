"""Probes: facts that only importing a library tells, gathered in a separate process, since a broken library may crash
or hang.

    python -m adatad.doctor.probe torch|libraries|decoders

A probe prints a JSON object on its last line, and before each risky step that step's name, so that a crash can be
attributed.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ABOUT = "about: "
# Import names differ from those of the packages: yaml is PyYAML.
LIBRARIES = (
    "numpy",
    "numba",
    "yaml",
    "pydantic",
    "rich",
    "safetensors",
    "psutil",
    "jinja2",
    "matplotlib",
    "tensorboard",
)
"""Import names of the libraries that every run needs, beside torch and the decoders."""


def start(name: str) -> subprocess.Popen[str]:
    """Start a probe in the background; `finish` waits for it."""
    command = [sys.executable, "-m", "adatad.doctor.probe", name]
    # A probe is no rank: with a launcher's variables, libraries would wait for other ranks.
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", env=environment,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], limit_seconds: float) -> dict[str, Any]:
    """Return what a probe found; {"failed": why} if it crashed, hung or printed no JSON."""
    try:
        out, err = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        # kill, not terminate: a process that hangs in a driver's code doesn't get to Python's handlers.
        process.kill()
        out, _ = process.communicate()
        return {"failed": f"gave no answer in {limit_seconds:g} s{_culprit(out)}"}
    # Libraries may print too: only the last line is the answer.
    lines = out.strip().splitlines()
    if process.returncode:
        last = (err.strip().splitlines() or ["nothing was said"])[-1]
        # A negative code is Python's way to say that a signal ended it.
        how = f"killed by signal {-process.returncode}" if process.returncode < 0 else last
        return {"failed": f"crashed ({how[:200]}){_culprit(out)}"}
    try:
        return json.loads(lines[-1])
    except (ValueError, IndexError):
        return {"failed": "printed nothing that can be read"}


def _culprit(out: str) -> str:
    """Return " while STEP" of the last step that a probe announced."""
    acts = [line.removeprefix(ABOUT) for line in out.splitlines() if line.startswith(ABOUT)]
    return f" while {acts[-1]}" if acts else ""


def about(act: str) -> None:
    """Announce a risky step, for `finish` to name if it crashes."""
    print(f"{ABOUT}{act}", flush=True)


def attempt_import(name: str) -> str | None:
    """Return why a library can't be imported; None if it can."""
    about(f"importing {name}")
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    return None


def probe_libraries() -> dict[str, Any]:
    """Return the errors of importing each library."""
    return {"errors": {name: error for name in LIBRARIES if (error := attempt_import(name))}}


def probe_torch() -> dict[str, Any]:
    """Return torch's build and the GPUs that it sees; check that timm's layers load beside it."""
    if error := attempt_import("torch"):
        return {"errors": {"torch": error}}
    import torch

    facts: dict[str, Any] = {
        "version": torch.__version__, "cuda_build": torch.version.cuda, "threads": torch.get_num_threads(),
        "arch_list": [], "gpus": [], "nccl": None, "cuda_error": None,
    }  # fmt: skip
    about("asking torch for GPUs")
    if torch.version.cuda:
        from adatad.parallel.devices import cuda_failure, first_line

        try:
            # Initializing CUDA is what crashes or hangs with a broken driver.
            facts["cuda_error"] = cuda_failure()
            facts["arch_list"] = torch.cuda.get_arch_list()
            for index in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(index)
                free, total = torch.cuda.mem_get_info(index)
                facts["gpus"].append(
                    {
                        "name": properties.name, "capability": [properties.major, properties.minor],
                        "free": free, "total": total,
                    }
                )  # fmt: skip
            facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        except Exception as error:
            facts["cuda_error"] = facts["cuda_error"] or first_line(error)
    # As training does: timm as a whole would load torchvision, which isn't needed.
    error = attempt_import("adatad.models.timm_layers")
    facts["errors"] = {"timm": error} if error else {}
    return facts


def probe_decoders() -> dict[str, Any]:
    """Check that each installed decoder gives the frames of a clip that was just written."""
    if error := attempt_import("av"):
        return {"errors": {"av": error}}
    import numpy as np

    from adatad.data.readers.pyav import PyavFrames
    from adatad.data.video_index import Heartbeat, read_index

    facts: dict[str, Any] = {"errors": {}, "worked": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        about("writing a clip with av")
        levels = write_clip(path)
        # As training opens videos, so that the index's own reading is probed too.
        index = read_index(path, Heartbeat())
        for name in ("pyav", "decord", "torchcodec"):
            if name != "pyav" and importlib.util.find_spec(name) is None:
                continue
            about(f"decoding with {name}")
            try:
                match name:
                    case "pyav":
                        source = PyavFrames(index, Heartbeat(), sequential=False)
                    case "decord":
                        from adatad.data.readers.decord import DecordFrames

                        source = DecordFrames(index, Heartbeat())
                    case _:
                        from adatad.data.readers.torchcodec import TorchcodecFrames

                        source = TorchcodecFrames(index, Heartbeat())
                frames = source.read(np.arange(len(levels)))
                source.close()
                worst = float(np.abs(frames.mean((1, 2, 3)) - levels).max())
                # H.264 and the conversion of colors round grey levels by less than 6.
                if frames.shape != (len(levels), 64, 64, 3) or worst > 6:
                    facts["errors"][name] = (
                        f"decodes other pictures than were written (grey levels differ by {worst:.0f})"
                    )
                else:
                    facts["worked"].append(name)
            except Exception as error:
                facts["errors"][name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    return facts


def write_clip(path: Path) -> list[int]:
    """Write 24 grey frames of 64 x 64 in H.264, or MPEG-4 without such an encoder; return their grey levels."""
    import av
    import numpy as np

    # Different in every frame, so that a wrong frame is noticed.
    levels = [40 + 7 * number for number in range(24)]
    # Builds of FFmpeg without GPL parts have no x264.
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for level in levels:
            image = np.full((64, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return levels


PROBES = {"torch": probe_torch, "libraries": probe_libraries, "decoders": probe_decoders}


if __name__ == "__main__":
    started = time.monotonic()
    found = PROBES[sys.argv[1]]()
    print(json.dumps({**found, "seconds": round(time.monotonic() - started, 1)}), flush=True)
    # Without the libraries' own shutdown: a crash there would discard a good answer.
    os._exit(0)
