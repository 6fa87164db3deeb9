"""The adapter on one tile, forward and backward by hand, with what the neighbouring tiles contribute.

With x the tokens behind the block's frozen part, z = GELU(x D + d) and w the K taps of the temporal convolution,

    v[t] = b + sum_k w[k] z[t + k dilation - reach];   u = z + v P + q;   y = x + gamma (u U + c)

Only v sees other tiles: `reach` = dilation (K - 1) / 2 planes of z to each side (a plane: one tubelet, all positions).
Going back, z's gradient needs as many planes of v's gradient from each side.

Names: gy, gu, gz, gv, gx are the gradients of y, u, z, v, x; gp that of the value before the activation.

Shapes: n clips of a tile, l tokens of a clip, c width; t planes of a tile, p positions of a plane, h hidden width; m
all tokens of patches of a tile (t x p). Class tokens are the first ones of each clip, and y = x there. Arithmetic is in
the dtype of the casts; gradients of weights are returned in fp32 (fp64 if the casts are).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adatad.models.adapter import Adapter

Add = Callable[[str, Tensor], None]
"""Takes a weight's name in `Adapter` and a tile's part of its gradient."""


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter's weights for one step: cast to the dtype of the tiles, gamma folded into `up`.

    `masters` are the uncast weights by their names in `Adapter`.
    """

    masters: dict[str, Tensor]
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    taps: Tensor | None
    """[hidden, K]; None: no convolution over time."""
    taps_bias: Tensor | None
    pointwise: Tensor | None
    pointwise_bias: Tensor | None
    dilation: int
    reach: int
    """Planes that the convolution sees to each side of its own."""
    class_tokens: int
    """Tokens of a clip that aren't the adapter's, before all others."""

    @property
    def exact(self) -> torch.dtype:
        """Dtype of weight gradients."""
        return torch.promote_types(self.down.dtype, torch.float32)


def cast_adapter(adapter: Adapter, masters: dict[str, Tensor], dtype: torch.dtype) -> AdapterWeights:
    """Cast an adapter's weights for a step. masters: uncast, by name, as `TrainedWeights` gave them."""
    masters = {name: weight.detach() for name, weight in masters.items()}
    gamma = masters["gamma"]
    temporal = adapter.depthwise is not None
    return AdapterWeights(
        masters=masters,
        down=masters["down.weight"].to(dtype),
        down_bias=masters["down.bias"].to(dtype),
        # gamma scales the output; folded in here it costs nothing on each tile.
        up=(masters["up.weight"] * gamma).to(dtype),
        up_bias=(masters["up.bias"] * gamma).to(dtype),
        taps=masters["depthwise.weight"][:, 0].to(dtype) if temporal else None,
        taps_bias=masters["depthwise.bias"].to(dtype) if temporal else None,
        pointwise=masters["pointwise.weight"][..., 0].to(dtype) if temporal else None,
        pointwise_bias=masters["pointwise.bias"].to(dtype) if temporal else None,
        dilation=adapter.dilation,
        reach=adapter.reach,
        class_tokens=adapter.class_tokens,
    )


def patch_rows(x_nlc: Tensor, weights: AdapterWeights) -> Tensor:
    """Return the tokens of patches, [m, c]: a view if a clip has no others, or if there is one clip alone."""
    return x_nlc[:, weights.class_tokens :].flatten(0, 1)


def squeeze(x_nlc: Tensor, weights: AdapterWeights, planes: int) -> tuple[Tensor, Tensor]:
    """Return z [t, p, h], of so many planes, and the value before its GELU [m, h]."""
    before_mh = F.linear(patch_rows(x_nlc, weights).to(weights.down.dtype), weights.down, weights.down_bias)
    return F.gelu(before_mh).view(planes, -1, before_mh.shape[-1]), before_mh


def with_neighbours(own_tph: Tensor, left: Tensor | None, right: Tensor | None, reach: int) -> Tensor:
    """Return planes between `reach` planes of the neighbours to each side, zeros where there is none."""
    if not reach:
        return own_tph
    # A window begins and ends with zeros, as the convolution over whole windows pads it.
    beside = [own_tph.new_zeros(reach, *own_tph.shape[1:]) if planes is None else planes for planes in (left, right)]
    return torch.cat([beside[0], own_tph, beside[1]])


def convolve(padded_tph: Tensor, weights: AdapterWeights, planes: int) -> Tensor:
    """Return v of `planes` planes, from z with its neighbours."""
    # Tap by tap on shifted planes, as in `depthwise_over_time`.
    v_tph = torch.addcmul(weights.taps_bias, padded_tph[:planes], weights.taps[:, 0])
    for tap in range(1, weights.taps.shape[1]):
        first = tap * weights.dilation
        v_tph.addcmul_(padded_tph[first : first + planes], weights.taps[:, tap])
    return v_tph


def mix_(z_tph: Tensor, padded_tph: Tensor | None, weights: AdapterWeights) -> Tensor:
    """Return u, in z's memory. padded_tph: z with its neighbours, None without a convolution."""
    if padded_tph is not None:
        # The product is made first, so z may be overwritten although the convolution reads it.
        v_tph = convolve(padded_tph, weights, len(z_tph))
        z_tph.add_(F.linear(v_tph, weights.pointwise, weights.pointwise_bias))
    return z_tph


def add_adapter_(
    x_nlc: Tensor, z_tph: Tensor, left: Tensor | None, right: Tensor | None, weights: AdapterWeights
) -> None:
    """Add gamma (u U + c) to the tokens of patches in place; z is used up."""
    padded_tph = None if weights.taps is None else with_neighbours(z_tph, left, right, weights.reach)
    u_mh = mix_(z_tph, padded_tph, weights).view(-1, z_tph.shape[-1])
    del padded_tph
    patches_nlc = x_nlc[:, weights.class_tokens :]
    patches_nlc.add_(F.linear(u_mh, weights.up, weights.up_bias).view_as(patches_nlc))


def planes_at(end: int, planes: Tensor, reach: int) -> Tensor:
    """Return the first (end 0) or last (end 1) `reach` planes."""
    return planes[:reach] if end == 0 else planes[len(planes) - reach :]


def through_up_and_pointwise(gy_tpc: Tensor, weights: AdapterWeights) -> Tensor:
    """Return v's gradient from y's, of some planes: [t, p, c] -> [t, p, h]."""
    return gy_tpc.to(weights.up.dtype) @ weights.up @ weights.pointwise


@dataclass
class Borders:
    """Planes of z and of v's gradient that a tile's backward needs of its neighbours; None at a window's ends."""

    z_left: Tensor | None
    z_right: Tensor | None
    gv_left: Tensor | None
    gv_right: Tensor | None


def adapter_backward(
    x_nlc: Tensor,
    gy_nlc: Tensor,
    borders: Borders,
    weights: AdapterWeights,
    planes: int,
    add: Add,
    pass_on: bool,
    end: int,
) -> tuple[Tensor | None, Tensor | None]:
    """Differentiate the adapter on one tile, and hand each weight's part of the gradient to `add`.

    x_nlc: tokens behind the frozen part; gy_nlc: gradient of the block's output. Returns x's gradient (None unless
    `pass_on`) and the planes of v's gradient at one end, which the next tile needs. Tensors are let go as soon as they
    have been used: this is where a step's memory is at its peak.
    """
    low = weights.down.dtype
    # Computed again from the tokens, as in forward; nothing of it was kept.
    x_mc, gy_mc = patch_rows(x_nlc, weights).to(low), patch_rows(gy_nlc, weights).to(low)
    z_tph, before_mh = squeeze(x_nlc, weights, planes)
    has_time = weights.taps is not None
    padded_tph = with_neighbours(z_tph, borders.z_left, borders.z_right, weights.reach) if has_time else None
    v_tph = convolve(padded_tph, weights, planes) if has_time else None
    # z stays as it is: with a reach of 0 `padded_tph` is z itself, and is needed below.
    u = F.linear(v_tph, weights.pointwise, weights.pointwise_bias).add_(z_tph) if has_time else z_tph
    _add_up(u.view(-1, u.shape[-1]), gy_mc, weights, add)
    del u, z_tph
    # Through up: u's gradient, which is z's but for what comes through the convolution.
    gz_mh = gy_mc @ weights.up
    gv_end = None
    if has_time:
        gz_mh, gv_tph = _through_convolution(gz_mh, v_tph, padded_tph, borders, weights, planes, add)
        # A copy, so that v's whole gradient can be freed here.
        gv_end = planes_at(end, gv_tph, weights.reach).clone()
        del gv_tph
    del padded_tph, v_tph
    # A private operator of PyTorch: what autograd calls for F.gelu.
    gp_mh = torch.ops.aten.gelu_backward(gz_mh, before_mh)
    del gz_mh, before_mh
    add("down.weight", product(gp_mh.t(), x_mc, weights.exact))
    add("down.bias", gp_mh.sum(0, dtype=weights.exact))
    if not pass_on:
        return None, gv_end
    # y's gradient itself (the residual) and what comes through the bottleneck, in one product.
    gx_mc = torch.addmm(gy_mc, gp_mh, weights.down)
    gx_nlc = gx_mc.view(len(x_nlc), -1, x_nlc.shape[-1]).to(x_nlc.dtype)
    if weights.class_tokens:
        # They pass the adapter by, and so does their gradient.
        gx_nlc = torch.cat([gy_nlc[:, : weights.class_tokens], gx_nlc], 1)
    return gx_nlc, gv_end


def _add_up(u_mh: Tensor, gy_mc: Tensor, weights: AdapterWeights, add: Add) -> None:
    """Add the gradients of up and gamma, from one product: gamma's is <u U + c, gy> = <U, gy^T u> + <c, sum gy>."""
    exact, masters = weights.exact, weights.masters
    # The sums over tokens are in fp32: hundreds of thousands of 16-bit products are added up here.
    outer_ch, total_c = product(gy_mc.t(), u_mh, exact), gy_mc.sum(0, dtype=exact)
    # gamma first: `mul_` below overwrites both.
    add("gamma", (outer_ch * masters["up.weight"]).sum().view(1) + (total_c * masters["up.bias"]).sum())
    add("up.weight", outer_ch.mul_(masters["gamma"]))
    add("up.bias", total_c.mul_(masters["gamma"]))


def _through_convolution(
    gu_mh: Tensor, v_tph: Tensor, padded_tph: Tensor, borders: Borders, weights: AdapterWeights, planes: int, add: Add
) -> tuple[Tensor, Tensor]:
    """Return z's gradient [m, h], in the memory of u's, and v's [t, p, h]."""
    hidden, exact, reach, dilation = v_tph.shape[-1], weights.exact, weights.reach, weights.dilation
    add("pointwise.weight", product(gu_mh.t(), v_tph.view(-1, hidden), exact)[..., None])
    add("pointwise.bias", gu_mh.sum(0, dtype=exact))
    gv_tph = (gu_mh @ weights.pointwise).view(planes, -1, hidden)
    add("depthwise.bias", gv_tph.sum((0, 1), dtype=exact))
    taps = weights.taps.shape[1]
    # Tap k saw z at k dilation - reach planes from its own: one shifted product for each tap.
    shifted = (padded_tph[tap * dilation : tap * dilation + planes] for tap in range(taps))
    add("depthwise.weight", torch.stack([(gv_tph * z_tph).sum((0, 1), dtype=exact) for z_tph in shifted], 1)[:, None])
    # A plane of z went into v through tap k at the plane k x dilation - reach to its left: back, the taps are mirrored.
    gv_padded_tph = with_neighbours(gv_tph, borders.gv_left, borders.gv_right, reach)
    gz_tph = gu_mh.view(planes, -1, hidden)
    for tap in range(taps):
        first = (taps - 1 - tap) * dilation
        gz_tph.addcmul_(gv_padded_tph[first : first + planes], weights.taps[:, tap])
    return gz_tph.view(-1, hidden), gv_tph


def product(a: Tensor, b: Tensor, exact: torch.dtype) -> Tensor:
    """Return a @ b in `exact`; a GPU writes 16-bit products in fp32 at once."""
    if a.dtype == exact:
        return a @ b
    if a.is_cuda or a.is_meta:
        return torch.mm(a, b, out_dtype=exact)
    return (a @ b).to(exact)
