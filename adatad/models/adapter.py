"""The temporal-informative adapter (TIA): a bottleneck that mixes neighbouring tubelets of the whole window.

    d = GELU(down(x));   t = pointwise(depthwise(d) along time);   delta = gamma * up(d + t)

AdaTAD section 3.2. Attention never leaves a clip; this convolution is what joins clips.

Shapes: n clips (of all windows), l tokens of a clip (class tokens, then tubelets x positions), c width, h hidden width;
b windows, t tubelets of a window, p positions of a tubelet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.timm_layers import trunc_normal_
from adatad.spec.sizes import adapter_reach

Padding = Callable[[Tensor, int], Tensor]
"""Returns a window [b, t, p, h] with that many planes (tubelets) more at its start and at its end."""
Recompute = Callable[..., Any]
"""Calls a function with the arguments that follow it, and calls it again in backward: `torch.utils.checkpoint`'s."""


def pad_with_zeros(window_btph: Tensor, reach: int) -> Tensor:
    """Return a window between `reach` planes of zeros on either side."""
    return F.pad(window_btph, (0, 0, 0, 0, reach, reach))


class Adapter(nn.Module):
    """Bottleneck adapter of one block; with `temporal=False` a plain one, without the convolution over time.

    `clip_tubelets` is the number of tubelets in a clip, which gives tokens their place in time. A clip's first
    `class_tokens` tokens have none: the adapter neither reads nor changes them.
    At the start `up` is zero, so the adapter changes nothing and only `up` gets a gradient in the first step.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        clip_tubelets: int,
        kernel: int = 3,
        dilation: int = 1,
        temporal: bool = True,
        class_tokens: int = 0,
    ):
        super().__init__()
        self.clip_tubelets = clip_tubelets
        self.class_tokens = class_tokens
        self.dilation = dilation
        self.down = nn.Linear(width, hidden)
        if temporal:
            # Modules for their weights and names; `depthwise_over_time` and F.linear compute with them.
            self.depthwise = nn.Conv1d(hidden, hidden, kernel, groups=hidden)
            self.pointwise = nn.Conv1d(hidden, hidden, 1)
        else:
            self.depthwise = self.pointwise = None
        self.up = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all weights; `up` with zeros."""
        trunc_normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        if self.depthwise is not None:
            nn.init.normal_(self.depthwise.weight, std=math.sqrt(2.0 / self.depthwise.kernel_size[0]))
            nn.init.zeros_(self.depthwise.bias)
            nn.init.normal_(self.pointwise.weight, std=math.sqrt(2.0 / self.pointwise.in_channels))
            nn.init.zeros_(self.pointwise.bias)
        # The adapter begins as the identity.
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @property
    def reach(self) -> int:
        """Planes (tubelets) that the convolution sees on either side of its own."""
        return 0 if self.depthwise is None else adapter_reach(self.depthwise.kernel_size[0], self.dilation)

    def forward(
        self, x_nlc: Tensor, batch: int, *, pad: Padding = pad_with_zeros, recompute: Recompute | None = None
    ) -> Tensor:
        """Return what the adapter adds to the tokens, those of the clips of one window next to each other.

        batch: windows; pad: what the convolution sees beyond a window's ends; recompute: keeps the inputs alone, and
        computes the rest again going back.
        """
        if recompute is not None:
            # Inside the module, so that the hooks of engines run once and not again in backward.
            return recompute(self.forward, x_nlc, batch, pad=pad)
        if not self.class_tokens:
            return self.expand(F.gelu(self.down(x_nlc)), batch, pad)
        added_nlc = self.expand(F.gelu(self.down(x_nlc[:, self.class_tokens :])), batch, pad)
        return F.pad(added_nlc, (0, 0, self.class_tokens, 0))

    def expand(self, z_nlh: Tensor, batch: int, pad: Padding = pad_with_zeros) -> Tensor:
        """Return everything behind the activation, of tokens of patches alone: [n, l, h] -> [n, l, c]."""
        if self.depthwise is not None:
            z_nlh = z_nlh + self.mix_time(z_nlh, batch, pad)
        # One learned number for the whole adapter; waves fold it into `up` (`adatad.memory.adapter_tile`).
        return self.gamma * self.up(z_nlh)

    def mix_time(self, z_nlh: Tensor, batch: int, pad: Padding = pad_with_zeros) -> Tensor:
        """Convolve along the tubelets of each window, every spatial position on its own; keeps the shape."""
        n, l, h = z_nlh.shape
        # Clips of a window lie next to each other, so their tubelets do too: no copy.
        window_btph = z_nlh.reshape(batch, -1, l // self.clip_tubelets, h)
        weight, bias = self.depthwise.weight, self.depthwise.bias
        mixed_btph = depthwise_over_time(pad(window_btph, self.reach), weight, bias, self.dilation)
        return F.linear(mixed_btph, self.pointwise.weight[..., 0], self.pointwise.bias).reshape(n, l, h)


def depthwise_over_time(padded_btph: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """Convolve each channel along time, as a sum of shifted planes: no permuted copy of the window.

    padded_btph: a window and what is beside it; weight: [h, 1, kernel]; bias: [h].
    """
    kernel = weight.shape[-1]
    length = padded_btph.shape[1] - dilation * (kernel - 1)
    # Under autocast z is 16-bit and the taps fp32; a convolution would be cast, so is this sum.
    taps = weight[:, 0].to(padded_btph.dtype)
    mixed_btph = bias.to(padded_btph.dtype)
    for tap in range(kernel):
        shifted = padded_btph[:, tap * dilation : tap * dilation + length]
        mixed_btph = torch.addcmul(mixed_btph, shifted, taps[:, tap])
    return mixed_btph
