"""Exit heads that compute more than one linear layer: words for exits that have few blocks below them.

Judge them at equal compute: what they cost is counted (:meth:`ExitHead.macs`). They have no stock form.
"""

from __future__ import annotations

import torch

from espnet_ee.compute import Parabola
from espnet_ee.encoder.base import real_frames
from espnet_ee.encoder.fast_blocks import ConvolutionModule
from espnet_ee.model.heads import ExitHead


class LSTMHead(ExitHead):
    """A bidirectional LSTM of the encoder's width, half of it each way, before the linear layer.

    Args:
        size: dimension of the hidden states D, even.
        vocabulary: number of tokens.
        dropout_rate: of the linear layer's input, in training.
    """

    def __init__(self, size: int, vocabulary: int, dropout_rate: float) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.lstm = torch.nn.LSTM(size, size // 2, batch_first=True, bidirectional=True)
        self.dropout = torch.nn.Dropout(dropout_rate)
        self.out = torch.nn.Linear(2 * (size // 2), vocabulary)

    def forward(self, hs: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        """The way back begins at an utterance's own last frame."""
        lengths = olens.cpu().clamp(min=1)
        packed = torch.nn.utils.rnn.pack_padded_sequence(hs, lengths, batch_first=True, enforce_sorted=False)
        mixed, _ = torch.nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=hs.size(1))
        return self.out(self.dropout(mixed))

    def macs(self) -> Parabola:
        """Four gates of each direction read a frame and the state before it."""
        size, units = self.lstm.input_size, self.lstm.hidden_size
        per_frame = 2 * 4 * units * (size + units) + 2 * units * self.vocabulary
        return Parabola(per_frame, per_frame)


class ConvolutionHead(ExitHead):
    """A convolution module of the exit's own (conformer's, kernel 15) before the linear layer.

    Args:
        size: dimension of the hidden states D.
        vocabulary: number of tokens.
        dropout_rate: of the linear layer's input, in training.
    """

    kernel = 15

    def __init__(self, size: int, vocabulary: int, dropout_rate: float) -> None:
        super().__init__()
        self.size, self.vocabulary = size, vocabulary
        self.convolution = ConvolutionModule(size, self.kernel, "layer")
        self.norm = torch.nn.LayerNorm(size)
        self.dropout = torch.nn.Dropout(dropout_rate)
        self.out = torch.nn.Linear(size, vocabulary)

    def forward(self, hs: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        return self.out(self.dropout(self.norm(hs + self.convolution(hs, real_frames(olens, hs)[..., None]))))

    def macs(self) -> Parabola:
        per_frame = self.size * (3 * self.size + self.kernel + self.vocabulary)
        return Parabola(per_frame, per_frame)
