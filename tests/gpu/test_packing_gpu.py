"""Flash attention over packed sequences says and learns what each says alone."""

from __future__ import annotations

import pytest
import torch

from rlkit.engine.attention import packed_attention
from rlkit.ops.packing import pack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("key_heads", [1, 2, 8])
@pytest.mark.parametrize("width", [64, 128])
def test_packed_is_alone(window: int | None, key_heads: int, width: int) -> None:
    torch.manual_seed(0)
    prompts = [torch.arange(30), torch.arange(30), torch.arange(7), torch.arange(1)]
    responses = [torch.arange(length) for length in (100, 3, 259, 64)]
    placed = {name: part.cuda() if name != "cu_seq_lens_q" else part for name, part in pack(prompts, responses).items()}
    row = placed.pop("input_ids").shape[1]
    placed.pop("position_ids")
    made = [torch.randn(1, heads, row, width, device="cuda") for heads in (8, key_heads, key_heads)]
    found = {}
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [part.to(torch.bfloat16).to(dtype).requires_grad_() for part in made]
        out, _ = packed_attention(None, *leaves, None, sliding_window=window, **placed)
        (out * torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)).sum().backward()
        found[dtype] = [out, *(leaf.grad for leaf in leaves)]
    for half, exact in zip(found[torch.bfloat16], found[torch.float64], strict=True):
        assert half is not None
        assert exact is not None
        assert (half.double() - exact).norm() <= 0.02 * exact.norm()


@pytest.mark.parametrize("window", [None, 1000])
def test_float32_with_shared_heads_holds_no_table_of_scores(window: int | None) -> None:
    length = 8192
    placed = {
        name: part.cuda() if name != "cu_seq_lens_q" else part
        for name, part in pack([torch.arange(1)], [torch.arange(length - 1)]).items()
    }
    del placed["input_ids"], placed["position_ids"]
    query, key, value = (torch.randn(1, heads, length, 64, device="cuda") for heads in (8, 2, 2))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    packed_attention(None, query, key, value, None, sliding_window=window, **placed)
    assert torch.cuda.max_memory_allocated() - before < 4 * 8 * length**2 / 2
