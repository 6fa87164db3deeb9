"""Every check on made-up facts: what is bad is found, with a fix; what is fine isn't complained of."""

import configparser
import os
import re
import socket
from pathlib import Path

import pytest

from adatad.doctor import machine, probe, software
from adatad.doctor.examine import examine
from adatad.doctor.experiment import check_owner
from adatad.doctor.findings import OK, PROBLEM, WARNING, Finding, guarded, lines

ROOT = Path(__file__).parents[2]
GIB = 2**30
GOOD = {name: "99.0" for name in software.NEEDED} | {"torch": "2.13.0", "torchvision": "0.28.0"}
TORCH = {"version": "2.13.0", "cuda_build": "13.0", "nccl": "2.27.5", "cuda_error": None, "errors": {}}
CARD = dict(zip(software.QUERY, ("NVIDIA X", "580.1", "81920", "0", "0", "Disabled", "0"), strict=True))
SEEN = {"name": "NVIDIA X", "capability": [9, 0], "free": 70 * GIB, "total": 80 * GIB}
PLACE = machine.Place("runs", "runs", 100 * GIB, 10**6, True, "ext4")
WIDE = {"n": 65536, "u": -1, "v": -1, "l": -1, "f": -1}


def torch_with(**changes):
    return {**TORCH, "gpus": [SEEN], "arch_list": ["sm_90"], **changes}


def smi_with(**changes):
    return software.Smi([{**CARD, **changes}])


BAD = [
    # software
    (software.check_python, ((3, 9, 1),), PROBLEM, "Python 3.9.1 is older than 3.11", "PYTHON="),
    (software.check_versions, ({k: v for k, v in GOOD.items() if k != "safetensors"}, {}), PROBLEM,
     "safetensors isn't installed", "launch/setup.sh"),
    (software.check_versions, ({**GOOD, "torch": "2.4.1"}, {}), PROBLEM,
     "torch 2.4.1 is older than 2.13", "torch>=2.13"),
    (software.check_versions, ({**GOOD, "numpy": "1.26.4"}, {}), PROBLEM, "numpy 1.26.4 is older than 2", "numpy>=2"),
    (software.check_versions, ({**GOOD, "deepspeed": "0.14.0"}, {}), WARNING,
     "deepspeed 0.14.0 is older", "deepspeed>="),
    (software.check_versions, ({**GOOD, "timm": "99.0"}, {"timm": "1.0.31"}), WARNING,
     "timm 99.0 (tried: 1.0.31)", "setup"),
    (software.check_pairs, ({"torch": "2.13.0", "torchvision": "0.20.1"},), PROBLEM, "wasn't made for torch", "0.28.*"),
    (software.check_pairs, ({"torch": "2.13.0+cu130", "torchvision": "0.28.0+cpu"},), PROBLEM, "built for cpu", "same"),
    (software.check_torch, ({"failed": "crashed (killed by signal 11)"}, None, False), PROBLEM,
     "signal 11", "rm -r .venv"),
    (software.check_torch, ({"errors": {"torch": "OSError: libcudart.so"}}, None, False), PROBLEM,
     "libcudart", ".venv"),
    (software.check_torch, (torch_with(cuda_build=None), "580.1", True), PROBLEM, "built for CPUs, and there are GPUs",
     "ADATAD_TORCH_INDEX"),
    (software.check_torch, (torch_with(), "470.82", True), PROBLEM, "needs driver 580 or newer; this one is 470.82",
     "update the driver"),
    (software.check_torch, (torch_with(cuda_error="no CUDA-capable device"), "590", True), PROBLEM, "no CUDA-capable",
     "--gpus all"),
    (software.check_torch, (torch_with(errors={"timm": "ImportError: x"}), "590", True), PROBLEM,
     "timm can't be", ".venv"),
    (software.check_libraries, ({"errors": {"numba": "ImportError: llvm"}},), PROBLEM,
     "numba can't be imported", ".venv"),
    (software.check_libraries, ({"failed": "crashed while importing numba"},), PROBLEM, "importing numba", ".venv"),
    (software.check_decoders,
     ({"errors": {"decord": "DECORDError"}, "worked": ["pyav"]}, {"decord": "0.6"}, "decord"), PROBLEM,
     "decord doesn't decode a test clip", "pyav"),
    (software.check_decoders, ({"errors": {"torchcodec": "RuntimeError"}, "worked": []}, {"decord": "0.6"}), WARNING,
     "torchcodec doesn't", "pyav"),
    (software.check_decoders, ({"errors": {}, "worked": ["pyav"]}, {}, "decord"), WARNING,
     "decord isn't installed", "pip install"),
    (software.check_decoders, ({"failed": "gave no answer in 60 s while decoding with decord"}, {}), PROBLEM,
     "while decoding with decord", ".venv"),
    # GPUs
    (software.check_gpus, (software.Smi([], "nvidia-smi gives no answer in 4 s"), {}, None), PROBLEM,
     "no answer", "restart"),
    (software.check_gpus, (smi_with(), torch_with(gpus=[]), ""), PROBLEM,
     "hides all 1 GPUs", "unset CUDA_VISIBLE_DEVICES"),
    (software.check_gpus, (smi_with(**{"memory.used": "40960"}), torch_with(), None), WARNING,
     "40.0 of 80.0 GiB are in use",
     "CUDA_VISIBLE_DEVICES"),
    (software.check_gpus, (smi_with(**{"ecc.errors.uncorrected.volatile.total": "3"}), torch_with(), None), PROBLEM,
     "3 memory errors", "take this GPU out"),
    (software.check_gpus, (smi_with(**{"mig.mode.current": "Enabled"}), torch_with(), None), WARNING,
     "MIG", "administrator"),
    (software.check_gpus, (smi_with(), torch_with(arch_list=["sm_75", "sm_80"]), None), PROBLEM,
     "capability 9.0", "build of"),
    # the machine
    (machine.check_cores, (2, None, 8, None), WARNING, "data.workers 8", "data.workers=2"),
    (machine.check_cores, (64, 4.0, None, None), WARNING, "a cgroup grants 4", "OMP_NUM_THREADS=4"),
    (machine.check_memory, ({"total": 64 * GIB, "available": 60 * GIB, "swap": 0, "limit": GIB},), PROBLEM,
     "a cgroup allows 1.0", "--mem"),
    (machine.check_memory, ({"total": 0, "available": 0, "swap": 0},), WARNING, "could not be checked", ""),
    (machine.check_place, (PLACE._replace(writable=False),), PROBLEM, "can't be written to", "run.root"),
    (machine.check_place, (PLACE._replace(free_bytes=GIB), 3 * GIB), PROBLEM,
     "1.0 GiB are free, 3.0 are needed", "room"),
    (machine.check_place, (PLACE._replace(inodes=3),), PROBLEM, "room for 3 more files", "delete"),
    (machine.check_place, (PLACE._replace(purpose="videos", kind="nfs4"), 0, False), WARNING, "nfs4", "stage_to"),
    (machine.check_shared_memory, (64 * 2**20, 300 * 2**20, 2), PROBLEM, "64 MiB free", "--shm-size=1g"),
    (machine.check_shared_memory, (None, 1, 2), PROBLEM, "isn't there", "data.workers=0"),
    (machine.check_limits, ({**WIDE, "n": 256}, False), WARNING, "ulimit -n allows 256", "ulimit -n 4096"),
    (machine.check_limits, ({**WIDE, "v": GIB}, False), PROBLEM, "ulimit -v", "ulimit -v unlimited"),
    (machine.check_limits, ({**WIDE, "l": 65536}, True), WARNING, "locked memory", "ulimit -l"),
    (machine.check_limits, ({**WIDE, "f": 10**6}, False), PROBLEM, "one file", "ulimit -f"),
    (machine.check_locale, ("utf-8", "ascii"), PROBLEM, "beyond ASCII aren't found", "C.UTF-8"),
    (machine.check_locale, ("ANSI_X3.4-1968", "utf-8"), WARNING, "escapes", "C.UTF-8"),
    (machine.check_environment, ({"RANK": "0", "WORLD_SIZE": "2"}, 4), PROBLEM,
     "MASTER_ADDR, MASTER_PORT missing", "unset"),
    (machine.check_environment, ({"RANK": ""}, 4), PROBLEM, "RANK is set", "torchrun"),
    (machine.check_environment, ({"LOCAL_RANK": "one"}, 4), PROBLEM, "LOCAL_RANK='one'", "unset LOCAL_RANK"),
    (machine.check_environment, ({"OMP_NUM_THREADS": "64"}, 4), WARNING, "for 4 cores", "OMP_NUM_THREADS=4"),
    (machine.check_environment, ({"OMP_NUM_THREADS": "many"}, 4), WARNING, "is no number", "unset"),
    (machine.check_environment, ({"CUDA_VISIBLE_DEVICES": ""}, 4), WARNING, "hides every GPU", "unset"),
    (machine.check_environment, ({"LD_PRELOAD": "libx.so"}, 4), WARNING, "libx.so", "unset LD_PRELOAD"),
    (machine.check_environment, ({"PYTORCH_ALLOC_CONF": "big"}, 4), PROBLEM, "torch refuses it", "expandable_segments"),
    (machine.check_network, ("h", False, ["lo"], {}), WARNING, "h, has no address", "/etc/hosts"),
    (machine.check_network, ("h", None, ["lo"], {}), WARNING, "isn't answered", "/etc/hosts"),
    (machine.check_network, ("h", True, ["lo"], {"NCCL_SOCKET_IFNAME": "ib0"}), PROBLEM,
     "no such network", "unset NCCL"),
    (machine.check_clock, (0.0, 1.7e9, None), PROBLEM, "earlier than this program", "timedatectl"),
    (machine.check_clock, (1.8e9, 1.7e9, 1.8e9 - 300), WARNING, "differ by 300 s", "timedatectl"),
    (check_owner, (f"abc on here, pid {os.getpid()}, now", "runs/x", "here"), WARNING, "in use by process", "--id N"),
    (check_owner, ("", "runs/x", "here"), WARNING, "names no process", "delete"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "facts", "level", "says", "fix"), BAD, ids=[f"{c.__name__}-{s}" for c, _, _, s, _ in BAD]
)
def test_what_is_bad_is_found_with_its_fix(check, facts, level, says, fix):
    found = [finding for finding in check(*facts) if finding.level != OK and says in finding.text]
    assert [finding.level for finding in found] == [level]
    assert fix in found[0].fix


FINE = [
    (software.check_python, ()),
    (software.check_versions, ({name: "99" for name in software.NEEDED}, {})),
    (software.check_pairs, (GOOD,)),
    (software.check_torch, (torch_with(), "580.65", True)),
    (software.check_torch, (torch_with(cuda_build=None), None, False)),
    (software.check_libraries, ({"errors": {}},)),
    (software.check_decoders, ({"errors": {}, "worked": ["pyav", "decord"]}, {"decord": "0.6.0"})),
    (software.check_gpus, (smi_with(**{"ecc.errors.uncorrected.volatile.total": "[N/A]"}), torch_with(), None)),
    (software.check_gpus, (smi_with(), torch_with(arch_list=["sm_80", "compute_80"]), "0")),
    (software.check_gpus, (software.Smi([], "there is no nvidia-smi"), {"gpus": []}, None)),
    (machine.check_cores, (8, 4.0, 4, "4")),
    (machine.check_memory, ({"total": 64 * GIB, "available": 60 * GIB, "swap": 0},)),
    (machine.check_place, (PLACE._replace(inodes=-1),)),
    (machine.check_shared_memory, (None, 10 * GIB, 0)),
    (machine.check_shared_memory, (8 * GIB, GIB, 2)),
    (machine.check_limits, ({**WIDE, "l": 1}, False)),
    (machine.check_locale, ("UTF-8", "utf-8")),
    (machine.check_environment, ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "29500",
                                  "OMP_NUM_THREADS": "2", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}, 4)),
    (machine.check_network,
     ("h", True, ["lo", "eth0"], {"NCCL_SOCKET_IFNAME": "eth", "GLOO_SOCKET_IFNAME": "^docker"})),
    (machine.check_clock, (1.8e9, 1.7e9, 1.8e9)),
    (check_owner, ("abc on elsewhere, pid 1, now", "runs/x", "here")),
    (check_owner, (f"abc on here, pid {2**22 + 1}, now", "runs/x", "here")),
]  # fmt: skip


@pytest.mark.parametrize(("check", "facts"), FINE, ids=[f"{c.__name__}-{n}" for n, (c, _) in enumerate(FINE)])
def test_what_is_fine_is_not_complained_of(check, facts):
    assert [finding for finding in check(*facts) if finding.level != OK] == []


def test_least_versions_are_those_of_the_installation():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    wanted = setup["options"]["install_requires"] + "".join(
        f"\n{extras[name]}" for name in extras if name not in ("dev", "docs")
    )
    found = dict(re.findall(r"^\s*([\w-]+)(?:>=([\d.]+))?", wanted, re.MULTILINE))
    assert {name.lower(): least or "0" for name, least in found.items()} == {
        **software.NEEDED, **{name: least for name, least in software.OPTIONAL.items() if name != "torchvision"},
    }  # fmt: skip


def test_a_second_copy_is_found(tmp_path):
    ours, tools = ROOT / "adatad", ROOT / "tools"
    for folder in ("adatad", "tools"):
        (tmp_path / folder).mkdir()
    (tmp_path / "adatad" / "__init__.py").touch()
    (found,) = software.check_copies([str(tmp_path), str(ROOT)], ours, tools, str(tmp_path))
    assert (found.level, found.fix) == (WARNING, "unset PYTHONPATH")
    (found,) = software.check_copies([str(ROOT), str(tmp_path)], ours, tools)
    assert "pip uninstall" in found.fix
    (found,) = software.check_copies([str(ROOT)], ours, tmp_path / "tools")
    assert found.level == PROBLEM
    assert f"commands of {tmp_path} run the adatad of {ROOT}" in found.text
    assert list(software.check_copies([str(ROOT)], ours, tools)) == []


def test_a_check_that_fails_is_a_finding():
    def check_moon():
        yield Finding("moon", OK, "there")
        raise OSError(5, "Input/output error")

    (finding,) = guarded("moon", check_moon)
    assert (finding.level, finding.topic) == (WARNING, "moon")
    assert finding.text == "check_moon could not be checked: OSError: Input/output error"


def test_facts_of_this_machine_can_be_read(tmp_path):
    allowed, quota = machine.cores()
    assert allowed >= 1
    assert quota is None or quota > 0
    assert machine.memory_bytes()["total"] > 0
    assert machine.place("runs", str(tmp_path / "not" / "yet")).free_bytes > 0
    assert machine.resolves("localhost")
    assert machine.resolves("no-such-name.invalid") in (False, None)
    assert machine.limits()["n"]
    assert "lo" in machine.interface_names()
    assert socket.gethostname()


def test_answers_of_nvidia_smi_are_read():
    found = software.parse_smi("NVIDIA A100, 535.54.03, 40960, 12, [N/A], Enabled, 0\n\nnonsense\n")
    assert found.driver == "535.54.03"
    assert len(found.gpus) == 1
    assert software.split_arch("90a") == (9, 0)
    assert software.split_arch("120") == (12, 0)


class Ended:
    """A probe that has ended, or hangs."""

    def __init__(self, out: str, err: str = "", code: int = 0):
        self.out, self.err, self.returncode = out, err, code

    def communicate(self, timeout=None):
        return self.out, self.err


@pytest.mark.parametrize(
    ("process", "says"),
    [
        (Ended("about: importing numba\n", "", -11), "crashed (killed by signal 11) while importing numba"),
        (Ended("", "Traceback\nValueError: x", 1), "crashed (ValueError: x)"),
        (Ended("", ""), "printed nothing that can be read"),
        (Ended("about: x\nnot json\n"), "printed nothing that can be read"),
    ],
)
def test_a_probe_that_crashes_is_told_with_what_it_did(process, says):
    assert probe.finish(process, 1) == {"failed": says}


def test_a_clip_is_decoded_by_what_is_installed(capsys):
    facts = probe.probe_decoders()
    assert "pyav" in facts["worked"]
    assert facts["errors"] == {}


def test_problems_come_last_and_nothing_steers_the_terminal():
    found = [Finding("a", PROBLEM, "bad\x1b[31m", "do\nthis"), Finding("b", OK, "fine"), Finding("c", WARNING, "odd")]
    assert lines(found) == [
        "ok       b: fine", "warning  c: odd", "problem  a: bad\\x1b[31m", "         fix: do\\nthis",
        "1 problem, 1 warning",
    ]  # fmt: skip


def test_examining_never_fails(monkeypatch):
    monkeypatch.setattr(probe, "PROBES", {"torch": None, "libraries": None, "decoders": None})
    monkeypatch.setattr(probe, "start", lambda name: type("P", (Ended,), {"kill": lambda self: None})("", "no", 3))

    def broken(*arguments):
        raise RuntimeError("no such thing here")

    for name in ("cores", "memory_bytes", "place", "limits", "shared_memory_free", "interface_names", "file_clock"):
        monkeypatch.setattr(machine, name, broken)
    monkeypatch.setattr(machine, "cores", lambda: (2, None))
    found = examine()
    assert sum("could not be checked" in finding.text for finding in found) >= 5
    assert any("torch crashed" in finding.text for finding in found)
