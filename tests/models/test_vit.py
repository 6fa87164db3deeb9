"""Attention of the backbone's blocks."""

import copy

import pytest
import torch
import torch.nn.functional as F

from adatad.models.videomae import Attention


def by_one_permutation(self: Attention, x: torch.Tensor) -> torch.Tensor:
    """The usual way to part queries, keys and values, whose gradients are stacked and copied again going back."""
    n, l, c = x.shape
    bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
    q, k, v = F.linear(x, self.qkv.weight, bias).reshape(n, l, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, l, c))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parting_queries_keys_and_values_changes_no_bit(dtype):
    torch.manual_seed(0)
    attention = Attention(48, 3).to(dtype)
    torch.nn.init.normal_(attention.q_bias)
    torch.nn.init.normal_(attention.v_bias)
    results = []
    for run in (Attention.forward, by_one_permutation):
        own, x = copy.deepcopy(attention), torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(1))
        x = x.to(dtype).requires_grad_()
        out = run(own, x)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, x.grad, *(p.grad for p in own.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
