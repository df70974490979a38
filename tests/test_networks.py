"""The networks' own arithmetic."""

import pytest
import torch

from undiffuse.networks import unet


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7)])
def test_attention_is_that_of_its_definition_either_way(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax over all pixels of the scaled products, head by head (Vaswani et al. 2017, eq. 1)."""
    torch.manual_seed(0)
    layer = unet.Attention(32, head_width=16).double()
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 32, *size, dtype=torch.float64)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).view(2, 3, 2, 16, -1).unbind(1)
    weights = torch.einsum("bhdi,bhdj->bhij", q, k).div(4).softmax(3)
    heads = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(x.shape)
    expected = x + layer.out(heads)
    for few in (0, 256):
        monkeypatch.setattr(unet, "FEW_TOKENS", few)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
