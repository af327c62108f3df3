"""WavLM's attention by torch's fused kernel, on the same parameters: no weights are returned, and none need be stored."""

from __future__ import annotations

import torch
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

Attended = tuple[torch.Tensor, None, torch.Tensor]


class FusedWavLMAttention(WavLMAttention):
    """Gated relative position bias (arXiv 2110.13900, eq. 4 to 6) as the additive mask of scaled dot-product attention.

    The library hands the bias on as a copy for each utterance and computes attention weights that nobody reads.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        output_attentions: bool = False,
        index: int = 0,
    ) -> Attended:
        """Attends within (B, T, D).

        Args:
            hidden_states: (B, T, D).
            attention_mask: True on the keys that are seen (B, 1, 1 or T, T); None: all.
            position_bias: of :meth:`compute_bias` (H, T, T): the same for every utterance and block.
            output_attentions: not used, nor is ``index``; the library's signature.
            index: likewise.
        """
        assert position_bias is not None, "the encoder computes the bias once, before its blocks"
        batch, frames, size = hidden_states.shape

        def by_head(values: torch.Tensor) -> torch.Tensor:
            return values.view(batch, frames, self.num_heads, -1).transpose(1, 2)  # (B, H, T, D/H)

        gates = self.gru_rel_pos_linear(by_head(hidden_states)).unflatten(-1, (2, 4)).sum(dim=-1).sigmoid()
        reset, update = gates.chunk(2, dim=-1)  # (B, H, T, 1)
        added = (reset * (update * self.gru_rel_pos_const - 1.0) + 2.0) * position_bias
        if attention_mask is not None:
            added = added.masked_fill(~attention_mask, float("-inf"))
        queries, keys, values = (by_head(part(hidden_states)) for part in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        mixed = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=added.to(queries.dtype), dropout_p=dropout
        )
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, frames, size)), None, position_bias
