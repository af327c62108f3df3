"""``encoder: early_exit_hf``: wav2vec 2.0, HuBERT and WavLM of transformers, computed block by block from the waveform."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import nn

from espnet_ee.encoder import hf_traced
from espnet_ee.encoder.base import (
    EncoderState,
    SegmentEncoder,
    block_of,
    check_counts,
    check_rates,
    left_out,
    real_frames,
    trains_with_others,
)
from espnet_ee.errors import UsageError, missing_packages_named
from espnet_ee.subsampling import Convolutions
from espnet_ee.values import is_number


@dataclass(frozen=True)
class HfCarry:
    """What the blocks need beside the hidden states.

    Attributes:
        real: True on real frames (B, T), or None where every frame is real: then no block needs to mask.
        bias: WavLM's relative position bias (H, T, T), the same for every utterance; None: the family has none.
    """

    real: torch.Tensor | None
    bias: torch.Tensor | None = None

    def select(self, rows: torch.Tensor, frames: int) -> HfCarry:
        real = None if self.real is None else self.real[rows, :frames]
        bias = None if self.bias is None else self.bias[:, :frames, :frames]
        return HfCarry(None if real is None or bool(real.all()) else real, bias)


class EarlyExitHfEncoder(SegmentEncoder):
    """A pre-trained speech encoder of the transformers library with exits; it takes samples at 16 kHz.

    Alone, an utterance has the library's own hidden states, bit for bit (WavLM's up to rounding); in a batch what it has
    alone, which the library does not promise: a front end with group norm (the base models) is computed per utterance.
    The exits of models with norms before their blocks (the large ones) have norms of their own, which begin as copies of the
    final one.

    Args:
        input_size: 1: ``frontend: null`` and ``input_size: 1`` are how ESPnet gives samples to an encoder.
        exit_layers: 1-based numbers of the blocks that an exit follows; the last block is one of them.
        pretrained: where a training begins: a folder that transformers saved (config.json, model.safetensors), or a name on
            the Hugging Face hub. Only safetensors are read.
        architecture: what the model is; written into config.yaml by a training. With it ``pretrained`` is not looked at, and
            the weights are to come from a checkpoint (without one they are random).
        normalize_waveform: whether every utterance gets mean 0 and variance 1; None: as preprocessor_config.json says.
        freeze_feature_extractor: keeps the convolutions before the first block as they are.
        unfreeze_step: updates in which the whole pre-trained model is kept as it is, while heads and exits' norms train.
        layer_decay: what a block's learning rate is to that of the block above; 1.0: all have that of ``optim_conf``.
        layerdrop: chance that a block is skipped in a training step.
        dropout_rate: of the modules' outputs.
        attention_dropout_rate: of the attention weights.
        activation_dropout_rate: within feed-forward modules.
        mask_time_prob: share of the frames before the first block that masks would cover in training, if none overlapped.
        mask_time_length: frames of a mask.
        mask_feature_prob: likewise, of the hidden dimensions.
        mask_feature_length: dimensions of a mask.

    Raises:
        UsageError: the settings do not fit together.
        UserError: there is no such model, or transformers is not installed.
    """

    takes: ClassVar[str] = "samples"
    updates: torch.Tensor
    encoders: nn.ModuleList
    masked_spec_embed: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        exit_layers: list[int] = [],  # noqa: B006 - ESPnet shows it in --print_config
        pretrained: str = "",
        architecture: dict[str, Any] = {},  # noqa: B006 - likewise
        normalize_waveform: bool | None = None,
        freeze_feature_extractor: bool = True,
        unfreeze_step: int = 0,
        layer_decay: float = 1.0,
        layerdrop: float = 0.1,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.1,
        activation_dropout_rate: float = 0.1,
        mask_time_prob: float = 0.05,
        mask_time_length: int = 10,
        mask_feature_prob: float = 0.0,
        mask_feature_length: int = 10,
    ) -> None:
        super().__init__()
        self.masks = ((mask_time_prob, mask_time_length), (mask_feature_prob, mask_feature_length))
        self.layerdrop, self.layer_decay, self.unfreeze_step = layerdrop, layer_decay, unfreeze_step
        dropouts = (dropout_rate, attention_dropout_rate, activation_dropout_rate)
        _check_settings(self, input_size, dropouts)
        with missing_packages_named():
            from espnet_ee.encoder import hf_models
        rates = {**dict(zip(hf_models.DROPOUTS, dropouts, strict=True)), "mask_time_prob": mask_time_prob}
        if architecture:
            table = hf_models.check_architecture(architecture, "encoder_conf: architecture")
            model = hf_models.build_model(table, rates)
        elif pretrained:
            table, model = hf_models.read_pretrained(pretrained, rates)
        else:
            raise UsageError("encoder_conf: early_exit_hf needs pretrained: a folder, or a name such as facebook/wav2vec2-base")
        if normalize_waveform is not None:
            table[hf_models.NORMALIZE] = normalize_waveform
        self.architecture, self.normalizes = table, bool(table[hf_models.NORMALIZE])
        self.input_size = input_size
        self.place_exits(exit_layers, len(model.encoder.layers))
        self._take_parts(model)
        if table["model_type"] == "wavlm":
            hf_models.fuse_attention(self.encoders)
        self.freeze_feature_extractor, self.counting = freeze_feature_extractor, False
        if freeze_feature_extractor:
            self.feature_extractor._freeze_parameters()
        if unfreeze_step:
            # Kept with the parameters: a training that goes on goes on with its count. Others have no use for it.
            self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def _take_parts(self, model: Any) -> None:
        """Takes the library's modules, under the names that blocks and norms have in every encoder here."""
        self.feature_extractor, self.feature_projection = model.feature_extractor, model.feature_projection
        self.pos_conv_embed, self.embed_dropout = model.encoder.pos_conv_embed, model.encoder.dropout
        self.encoders, self.masked_spec_embed = model.encoder.layers, getattr(model, "masked_spec_embed", None)
        self.pre_norm: bool = self.architecture["do_stable_layer_norm"]
        if not self.pre_norm:
            self.embed_norm = model.encoder.layer_norm
            return
        self.after_norm = model.encoder.layer_norm
        self.exit_norms = nn.ModuleDict({str(layer): copy.deepcopy(self.after_norm) for layer in self.exit_layers[:-1]})

    def output_size(self) -> int:
        return self.architecture["hidden_size"]

    @property
    def subsampling(self) -> Convolutions:
        return tuple(zip(self.architecture["conv_kernel"], self.architecture["conv_stride"], strict=True))

    def exit_norm_of(self, layer: int) -> nn.Module | None:
        """None where every block ends in a norm of its own."""
        if not self.pre_norm:
            return None
        return self.exit_norms[str(layer)] if str(layer) in self.exit_norms else self.after_norm

    def embed_frames(self, xs: torch.Tensor, ilens: torch.Tensor) -> EncoderState:
        with self._gradients():
            projected = self.feature_projection(self._convolved(xs, ilens.tolist()))
            hidden: torch.Tensor = projected[0] if isinstance(projected, tuple) else projected
            olens = self.frames_of(ilens).clamp(max=hidden.size(1))
            real = real_frames(olens, hidden)
            hidden = self._masked(hidden, real)
            padded = int(olens.min()) < hidden.size(1)
            if padded:
                hidden = hidden.masked_fill(~real[..., None], 0.0)
            hidden = hidden + self.pos_conv_embed(hidden)
            hidden = self.embed_dropout(hidden if self.pre_norm else self.embed_norm(hidden))
            # Of an utterance without frames the first counts as one: attention to nothing is not a number.
            carry = self.traced_carry(hidden, olens.clamp(min=1))
        return EncoderState(hidden, olens, carry if padded else replace(carry, real=None))

    def _convolved(self, xs: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """What the convolutions make of samples (B, L): (B, T, C). No utterance sees the length of another."""
        rows = [self._prepared(samples[:length]) for samples, length in zip(xs, lengths, strict=True)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_feature_extractor):
            if self.architecture["feat_extract_norm"] == "group":  # over time, so padding would count
                features = [self.feature_extractor(row[None])[0].transpose(0, 1) for row in rows]
                return nn.utils.rnn.pad_sequence(features, batch_first=True)
            return self.feature_extractor(nn.utils.rnn.pad_sequence(rows, batch_first=True)).transpose(1, 2)

    def _prepared(self, samples: torch.Tensor) -> torch.Tensor:
        """One utterance (L,) as the model was trained on it, of the least length that leaves a frame."""
        if self.normalizes and len(samples):
            samples = (samples - samples.mean()) / torch.sqrt(samples.var(unbiased=False) + 1e-7)
        return nn.functional.pad(samples, (0, max(0, self.min_frames - len(samples))))

    def _masked(self, hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """SpecAugment of the hidden states (B, T, D), in training; a masked frame is one learned vector."""
        if not self.training:
            return hidden
        from espnet_ee.encoder.hf_models import draw_masks

        (time_share, time_length), (feature_share, feature_length) = self.masks
        if self.masked_spec_embed is not None:
            frames = draw_masks(real, time_share, time_length, least=2).to(hidden.device)
            # Where nothing is masked the vector's gradient is 0, not missing: processes that train together wait for it.
            hidden = torch.where(frames[..., None], self.masked_spec_embed.to(hidden.dtype), hidden)
        if feature_share:
            everything = real.new_ones(hidden.size(0), hidden.size(2))
            dimensions = draw_masks(everything, feature_share, feature_length, least=0).to(hidden.device)
            hidden = hidden.masked_fill(dimensions[:, None], 0.0)
        return hidden

    def block(self, number: int, state: EncoderState) -> EncoderState:
        skipped = self.training and self.layerdrop > 0 and not self.frozen and torch.rand(()).item() < self.layerdrop
        compute = partial(self._computed, self.encoders[number - 1], state)
        return replace(state, hidden=left_out(state.hidden, compute) if skipped else compute())

    def _computed(self, block: nn.Module, state: EncoderState) -> torch.Tensor:
        carry = cast(HfCarry, state.carry)
        seen = None if carry.real is None else carry.real[:, None, None].expand(-1, -1, state.hidden.size(1), -1)
        extra = {} if carry.bias is None else {"position_bias": carry.bias}
        with self._gradients():
            output = block(state.hidden, attention_mask=seen, **extra)
        return output[0] if isinstance(output, tuple) else output  # a tuple in transformers 4, and of WavLM

    def exit_hidden(self, layer: int, state: EncoderState) -> torch.Tensor:
        if layer == self.exit_layers[-1] and self.training and self.frozen and trains_with_others():
            return state.hidden + 0.0 * torch.stack([part.sum() for part in self.pretrained_parameters()]).sum()
        return state.hidden

    # --- for ONNX -------------------------------------------------------------------------------------------------------

    def traced_embed(self, xs: torch.Tensor, ilens: torch.Tensor) -> torch.Tensor:
        lengths = ilens.clamp(min=self.min_frames)  # as a session pads what is shorter
        xs = hf_traced.standardised(xs, lengths) if self.normalizes else xs
        projected = self.feature_projection(hf_traced.convolved(self.feature_extractor, self.subsampling, xs, lengths))
        hidden: torch.Tensor = projected[0] if isinstance(projected, tuple) else projected
        hidden = hidden.masked_fill(~real_frames(self.frames_of(lengths), hidden)[..., None], 0.0)
        hidden = hidden + self.pos_conv_embed(hidden)
        return hidden if self.pre_norm else self.embed_norm(hidden)

    def traced_carry(self, hidden: torch.Tensor, olens: torch.Tensor) -> HfCarry:
        attention: Any = self.encoders[0].attention
        bias = attention.compute_bias(*[hidden.size(1)] * 2) if hasattr(attention, "compute_bias") else None
        return HfCarry(real_frames(olens, hidden), bias)

    # --- what trains, and when ---------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether the whole pre-trained model is kept as it is, still."""
        return self.unfreeze_step > 0 and int(self.updates) < self.unfreeze_step

    def _gradients(self) -> torch.set_grad_enabled:
        if self.training and self.unfreeze_step and not self.counting:
            raise UsageError("encoder_conf: unfreeze_step counts updates, which only a training by ESPnet's asr_train tells")
        return torch.set_grad_enabled(torch.is_grad_enabled() and not (self.training and self.frozen))

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """The pre-trained model's parameters that are to train at some time; norms after a block are their exits'."""
        return (value for name, value in self.named_parameters() if value.requires_grad and not _is_of_an_exit(name))

    def learning_rates(self) -> dict[nn.Parameter, float]:
        """What each parameter's learning rate is multiplied by: ``layer_decay`` for each block above it."""
        blocks = len(self.encoders)
        return {
            value: 1.0 if _is_of_an_exit(name) else self.layer_decay ** (blocks - block_of(name))
            for name, value in self.named_parameters()
        }

    def count_update(self) -> None:
        """Counts an update of the parameters; with the last one in which the model is kept, all of it begins to train."""
        self.updates += 1
        if int(self.updates) == self.unfreeze_step:
            self.train(self.training)

    def train(self, mode: bool = True) -> EarlyExitHfEncoder:
        """Switches to training; what is kept as it is stays in evaluation mode: its dropout is off, and no statistic moves."""
        super().train(mode)
        if self.frozen:
            for part in (self.feature_projection, self.pos_conv_embed, self.embed_dropout, self.encoders):
                part.eval()
        if self.frozen or self.freeze_feature_extractor:
            self.feature_extractor.eval()
        return self


def _is_of_an_exit(name: str) -> bool:
    return name.startswith(("exit_norms.", "after_norm."))


def _check_settings(encoder: EarlyExitHfEncoder, input_size: int, dropouts: Sequence[float]) -> None:
    if input_size != 1:
        raise UsageError(
            f"encoder: early_exit_hf takes audio, not features of {input_size} values: set frontend: null and input_size: 1 "
            "(in a recipe, with --feats_type raw)"
        )
    (time_share, time_length), (feature_share, feature_length) = encoder.masks
    names = ("dropout_rate", "attention_dropout_rate", "activation_dropout_rate")
    check_rates(**dict(zip(names, dropouts, strict=True)), layerdrop=encoder.layerdrop)
    check_rates(mask_time_prob=time_share, mask_feature_prob=feature_share)
    check_counts(1, mask_time_length=time_length, mask_feature_length=feature_length)
    check_counts(0, unfreeze_step=encoder.unfreeze_step)
    decay = encoder.layer_decay
    if not is_number(decay, 0.0, 1.0) or not decay:
        raise UsageError(f"encoder_conf: layer_decay {decay!r} is not above 0.0 and up to 1.0")
