"""Exits are read through the linear layer that stock recipes put between a pre-trained frontend and the encoder."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from espnet_ee.errors import UsageError, UserError
from espnet_ee.model.heads import mac_table
from espnet_ee.model.preencoder import check_preencoder
from espnet_ee.store.build import build_model
from espnet_ee.store.checkpoint import load_model
from espnet_ee.store.model_card import Card
from espnet_ee.store.package import load_package, pack_model
from tests import tiny

LINEAR = {"preencoder": "linear", "preencoder_conf": {"input_size": 80, "output_size": 40, "dropout": 0.1}}
SPEECH = [(np.random.default_rng(n).standard_normal(n) * 0.1).astype(np.float32) for n in (16000, 9000, 24000)]


def assert_exits_are_those_of_stock(model: torch.nn.Module) -> None:
    """One by one and in a batch, by the evidence of every exit."""
    for samples, result in zip(SPEECH, tiny.every_exit(model, SPEECH), strict=True):
        with torch.no_grad():
            (final, below), olens = model.encode(torch.tensor(samples)[None], torch.tensor([len(samples)]))
            heads = {**getattr(model, "exit_ctc", {})}
            for row, (layer, hs) in zip(result.rows, [*below, (4, final)], strict=True):
                logits = heads[str(layer)](hs, olens) if str(layer) in heads else model.ctc.ctc_lo(hs)
                (expected,) = tiny.evidence(layer, logits, olens.tolist())
                assert row.evidence.tokens == expected.tokens
                assert row.evidence.entropy == pytest.approx(expected.entropy, rel=1e-5)


@pytest.mark.parametrize("kind", ["early_exit", "espnet"])
def test_exits_are_those_of_stock_and_the_layer_is_counted(tmp_path, kind):
    settings = {**LINEAR, "model": kind}
    model = load_model(*tiny.save(tmp_path, tiny.model(seed=2, **settings), **settings))
    assert_exits_are_those_of_stock(model)
    whole, encoder = mac_table(model), model.encoder.macs()
    for length in (7, 8, 11, 100, 1001):
        assert whole.encoder_macs(2, length) == encoder.encoder_macs(2, length) + length * 80 * 40


def test_it_is_packed(tmp_path):
    model = tiny.model(seed=2, **LINEAR)
    packed = pack_model(*tiny.save(tmp_path, model, **LINEAR), tmp_path / "package", Card("a/b", "other", "noise"))
    loaded = load_package(packed).model
    assert torch.equal(loaded.preencoder.linear_out.weight, model.preencoder.linear_out.weight)


class _Upstream(torch.nn.Module):
    """Stands for a pre-trained model: a frame for every 20 ms."""

    def __init__(self, name: str, **_: Any) -> None:
        super().__init__()
        self.upstream, self.linear = SimpleNamespace(), torch.nn.Linear(320, 24)

    @staticmethod
    def available_names() -> list[str]:
        return ["tiny"]

    def forward(self, wavs: torch.Tensor, lengths: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        hidden = self.linear(wavs.unfold(1, 320, 320))
        return [hidden, hidden.tanh()], [lengths // 320] * 2


class _Featurizer(torch.nn.Module):
    def __init__(self, upstream: _Upstream, layer_selections: list[int] | None = None) -> None:
        super().__init__()
        self.output_size, self.downsample_rate, self.weights = 24, 320, torch.nn.Parameter(torch.zeros(2))

    def forward(self, feats: list[torch.Tensor], lengths: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return (torch.stack(feats) * self.weights.softmax(0)[:, None, None, None]).sum(0), lengths[0]


def test_a_pretrained_frontend_of_s3prl(tmp_path, monkeypatch):
    package = ModuleType("s3prl.nn")
    package.S3PRLUpstream, package.Featurizer = _Upstream, _Featurizer
    monkeypatch.setitem(sys.modules, "s3prl", ModuleType("s3prl"))
    monkeypatch.setitem(sys.modules, "s3prl.nn", package)
    settings = {
        "frontend": "s3prl",
        "frontend_conf": {"frontend_conf": {"upstream": "tiny"}, "multilayer_feature": True},
        "preencoder": "linear",
        "preencoder_conf": {"input_size": 24, "output_size": 40},
    }
    model = load_model(*tiny.save(tmp_path, tiny.model(seed=2, **settings), **settings))
    assert_exits_are_those_of_stock(model)
    assert tiny.asr(model).session.frame_seconds == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("frontend", "conf"),
    [
        ("s3prl", {"frontend_conf": {"upstream": "tiny"}}),
        ("fused", {"frontends": [{"frontend_type": "default"}, {"frontend_type": "s3prl"}]}),
    ],
)
def test_a_package_that_does_not_load_is_one_line_with_what_to_do(frontend, conf, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "s3prl", None)
    with pytest.raises(UserError, match=r"^x.yaml: frontend: s3prl: its package does not load \(.*s3prl.*\); .*early_exit_hf"):
        build_model(tiny.config(frontend=frontend, frontend_conf=conf), "x.yaml")
    assert capfd.readouterr().out == ""


def test_what_no_exit_can_be_read_through_is_named():
    with pytest.raises(UsageError, match="preencoder: exits are read through linear or none, not Conv1d"):
        check_preencoder(torch.nn.Conv1d(1, 1, 1), None)
