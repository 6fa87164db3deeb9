"""The temporal-informative adapter (TIA): a bottleneck that mixes neighbouring tubelets of the whole window.

    d = GELU(down(x));   t = pointwise(depthwise(d) along time);   delta = gamma * up(d + t)

AdaTAD section 3.2. Attention never leaves a clip; this convolution is what joins clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.timm_layers import trunc_normal_

Padding = Callable[[Tensor, int], Tensor]
"""Returns a window [b, tubelets, positions, hidden] with that many planes more at its start and at its end."""
Recompute = Callable[..., Any]
"""Calls a function with the arguments that follow it, and calls it again in backward: `torch.utils.checkpoint`'s."""


def pad_with_zeros(window: Tensor, reach: int) -> Tensor:
    """Return a window [b, tubelets, positions, hidden] between `reach` planes of zeros on either side."""
    return F.pad(window, (0, 0, 0, 0, reach, reach))


class Adapter(nn.Module):
    """Bottleneck adapter of one block; with `temporal=False` a plain one, without the convolution over time.

    `clip_tubelets` is the number of tubelets in a clip, which gives tokens their place in time.
    At the start `up` is zero, so the adapter changes nothing and only `up` gets a gradient in the first step.
    """

    def __init__(
        self, width: int, hidden: int, clip_tubelets: int, kernel: int = 3, dilation: int = 1, temporal: bool = True
    ):
        super().__init__()
        self.clip_tubelets = clip_tubelets
        self.dilation = dilation
        self.down = nn.Linear(width, hidden)
        if temporal:
            self.depthwise = nn.Conv1d(hidden, hidden, kernel, groups=hidden)
            self.pointwise = nn.Conv1d(hidden, hidden, 1)
        else:
            self.depthwise = self.pointwise = None
        self.up = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        trunc_normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        if self.depthwise is not None:
            nn.init.normal_(self.depthwise.weight, std=math.sqrt(2.0 / self.depthwise.kernel_size[0]))
            nn.init.zeros_(self.depthwise.bias)
            nn.init.normal_(self.pointwise.weight, std=math.sqrt(2.0 / self.pointwise.in_channels))
            nn.init.zeros_(self.pointwise.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @property
    def reach(self) -> int:
        """Planes (tubelets) that the convolution sees on either side of its own."""
        return 0 if self.depthwise is None else self.dilation * (self.depthwise.kernel_size[0] - 1) // 2

    def forward(
        self, tokens: Tensor, batch: int, *, pad: Padding = pad_with_zeros, recompute: Recompute | None = None
    ) -> Tensor:
        """Return what the adapter adds to `tokens`.

        tokens: [batch x clips, tubelets x positions, width], the clips of one window next to each other. pad: what the
        convolution sees beyond a window's ends. recompute: keeps the inputs alone and computes the rest again going
        back; it works inside the module, so that the hooks of engines run once.
        """
        if recompute is not None:
            return recompute(self.forward, tokens, batch, pad=pad)
        return self.expand(F.gelu(self.down(tokens)), batch, pad)

    def expand(self, bottleneck: Tensor, batch: int, pad: Padding = pad_with_zeros) -> Tensor:
        """Everything behind the activation: [batch x clips, tubelets x positions, hidden] -> [.., .., width]."""
        if self.depthwise is not None:
            bottleneck = bottleneck + self.mix_time(bottleneck, batch, pad)
        return self.gamma * self.up(bottleneck)

    def mix_time(self, bottleneck: Tensor, batch: int, pad: Padding = pad_with_zeros) -> Tensor:
        """Convolve along the tubelets of each window, every spatial position on its own.

        bottleneck: [batch x clips, tubelets x positions, hidden] -> the same shape.
        """
        clips, tokens, hidden = bottleneck.shape
        window = bottleneck.reshape(batch, -1, tokens // self.clip_tubelets, hidden)
        weight, bias = self.depthwise.weight, self.depthwise.bias
        mixed = depthwise_over_time(pad(window, self.reach), weight, bias, self.dilation)
        return F.linear(mixed, self.pointwise.weight[..., 0], self.pointwise.bias).reshape(clips, tokens, hidden)


def depthwise_over_time(padded: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """Depthwise convolution along axis 1 as a sum of shifted planes: no permuted copy of the window.

    padded: [batch, tubelets and what is beside them, positions, hidden]; weight: [hidden, 1, kernel]; bias: [hidden].
    """
    kernel = weight.shape[-1]
    length = padded.shape[1] - dilation * (kernel - 1)
    taps = weight[:, 0].to(padded.dtype)
    mixed = bias.to(padded.dtype)
    for tap in range(kernel):
        mixed = torch.addcmul(mixed, padded[:, tap * dilation : tap * dilation + length], taps[:, tap])
    return mixed
