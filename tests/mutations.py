"""Plant deliberate mistakes, one at a time, in a copy of the package: each must be caught by the project's goldens.

    python tests/mutations.py

Prints what each mistake was caught by; exit code 1 if one survives.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mistake(NamedTuple):
    what: str
    file: str
    right: str
    wrong: str


MISTAKES = (
    Mistake("features masked before the detector", "models/detector.py",
            "return self.detector(features, mask, keys)", "return self.detector(features * mask[:, None], mask, keys)"),
    Mistake("tanh GELU in the adapter", "models/adapter.py", "F.gelu(self.down(x_nlc))",
            'F.gelu(self.down(x_nlc), approximate="tanh")'),
    Mistake("tanh GELU in the backbone", "models/vit.py", "self.mlp = self.mlp_type(width, mlp_width)",
            'self.mlp = Mlp(width, mlp_width, act_layer=lambda: nn.GELU("tanh"))'),
    Mistake("antialiased position table", "models/vit.py", 'mode="bicubic", align_corners=False',
            'mode="bicubic", align_corners=False, antialias=True'),
    Mistake("LayerNorm eps of detector blocks", "models/sequence.py", "self.ln1 = ChannelNorm(width, eps=1e-5)",
            "self.ln1 = ChannelNorm(width, eps=1e-3)"),
    Mistake("warm-up divided by its length", "training/optimizer.py",
            "max(warmup_steps - 1, 1)", "max(warmup_steps, 1)"),
    Mistake("clipping left out", "parallel/ddp.py", "if max_norm is not None:", "if False:"),
    Mistake("decay on biases", "training/optimizer.py", '("detector_no_decay", False, 0.0)',
            '("detector_no_decay", False, spec.weight_decay)'),
    Mistake("rates of two groups exchanged", "training/optimizer.py",
            "trained, spec.lr, weight_decay)", "trained, spec.lr if decays else 2 * spec.lr, weight_decay)"),
    Mistake("average of a wrong decay", "training/ema.py", "torch._foreach_mul_(averages, self.decay)",
            "torch._foreach_mul_(averages, self.decay**2)"),
    Mistake("average updated before the step", "training/step.py",
            '    with memory_scope("optimizer state"):\n        norm, sums = engine.update(',
            '    parts.ema.update(engine.master_parameters())\n    parts.ema.update = lambda _: None\n'
            '    with memory_scope("optimizer state"):\n        norm, sums = engine.update('),
    Mistake("masks of odd positions", "models/sequence.py", "short_mask = mask[:, :: self.stride]",
            "short_mask = mask[:, self.stride - 1 :: self.stride]"),
    Mistake("adapter stops at clip borders", "models/adapter.py", "window_btph = z_nlh.reshape(batch, -1,",
            "window_btph = z_nlh.reshape(n, -1,"),
    Mistake("adapter without its inner residual", "models/adapter.py",
            "z_nlh = z_nlh + self.mix_time(z_nlh, batch, pad)",
            "z_nlh = self.mix_time(z_nlh, batch, pad)"),
    Mistake("focal alpha the other way round", "models/losses.py", "alpha * targets + (1 - alpha) * (1 - targets)",
            "(1 - alpha) * targets + alpha * (1 - targets)"),
    Mistake("centre radius in grid units", "models/losses.py", "spec.center_radius * stride", "spec.center_radius"),
    Mistake("label smoothing over K classes", "models/losses.py", "(wanted.shape[-1] + 1)", "wanted.shape[-1]"),
    Mistake("normalizer used before its update", "models/losses.py", "        return self.value",
            "        return (self.value - (1 - self.momentum) * max(positives, 1)) / self.momentum"),
    Mistake("level scale left out", "models/actionformer.py", " * torch.cat(scales))", ")"),
    Mistake("windowed attention one too narrow", "models/sequence.py", "self.window // 2)", "self.window // 2 - 1)"),
    Mistake("biases of queries and values exchanged", "models/videomae.py",
            "[self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]",
            "[self.v_bias, torch.zeros_like(self.q_bias), self.q_bias]"),
    Mistake("seconds without the window's start", "evaluation/postprocess.py", "+ np.float32(meta.start_frame)", "+ 0"),
)  # fmt: skip


def plant(mistake: Mistake, folder: Path) -> None:
    """Copy the package to a folder, with the mistake in it."""
    shutil.copytree(ROOT / "adatad", folder / "adatad", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "adatad" / mistake.file
    text = file.read_text()
    if text.count(mistake.right) != 1:
        raise ValueError(f"{mistake.what}: {mistake.right!r} isn't found once in {mistake.file}")
    file.write_text(text.replace(mistake.right, mistake.wrong))


def caught_by(mistake: Mistake | None) -> str:
    """Quantities of the first case that notices the mistake, "" if none does; an error counts too. Without a mistake:
    of the first case that is over its tolerance.

    Runs in a process of its own, forked after the slow imports, which then imports the package anew.
    """
    for name in [name for name in sys.modules if name.split(".")[0] == "adatad"]:
        del sys.modules[name]
    with tempfile.TemporaryDirectory() as folder:
        if mistake:
            plant(mistake, Path(folder))
            sys.path.insert(0, folder)
        from adatad.dev.parity.golden_cases import find_cases, read_case
        from adatad.dev.parity.model_case import run_case

        if mistake and not Path(sys.modules["adatad"].__file__).is_relative_to(folder):
            raise RuntimeError("the package with the mistake isn't the one that was imported")
        try:
            for case in find_cases(ROOT / "tests" / "golden"):
                if over := {row.quantity for row in run_case(read_case(case)) if not row.passed}:
                    return "; ".join(sorted(over))
        except Exception as error:
            return f"an error: {error}"
    return ""


def survivors() -> list[str]:
    """Mistakes that nothing caught; prints a line for each mistake."""
    import torch

    import adatad.dev.parity.model_case  # noqa: F401, imported before the fork, to share the time that torch takes

    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        unchanged, *found = pool.map(caught_by, [None, *MISTAKES], chunksize=1)
    if unchanged:
        return [f"without any mistake: {unchanged}"]
    for mistake, quantities in zip(MISTAKES, found, strict=True):
        print(f"{mistake.what:40} {quantities[:110] or 'SURVIVED'}")
    return [mistake.what for mistake, quantities in zip(MISTAKES, found, strict=True) if not quantities]


if __name__ == "__main__":
    left = survivors()
    print(f"{len(MISTAKES) - len(left)} of {len(MISTAKES)} mistakes caught", *left, sep="\n")
    sys.exit(bool(left))
