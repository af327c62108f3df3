"""Self-conditioned CTC (``interctc_use_conditioning``): a block above an exit reads the exit's head, and stops stay stops.

That stock models of this kind are computed bit by bit: ``test_early_exit_model.py`` (training) and ``test_export_stock.py``.
"""

import numpy as np
import pytest
import torch

from espnet_ee.errors import UsageError, UserError
from espnet_ee.model.heads import EVIDENCE_MACS, mac_table
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.store.export_stock import export_stock
from tests import tiny

CONF = {**tiny.CONFORMER, "exit_layers": [1, 2, 4], "interctc_use_conditioning": True}
OWN = {"encoder_conf": {**CONF, "exit_norm": "separate"}}
SHARED = {"encoder_conf": CONF, "model": "espnet"}


def made(seed: int = 0, **settings) -> torch.nn.Module:
    """A model whose heads say different things for different frames, and whose blocks listen."""
    model = tiny.model(seed, **settings)
    for name, parameter in model.named_parameters():
        if name.endswith("ctc_lo.weight") or "conditioning_layer" in name:
            torch.nn.init.normal_(parameter)
    return model


def speech(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(random.standard_normal(length) * 0.1).astype(np.float32) for length in lengths]


@pytest.mark.parametrize("settings", [OWN, SHARED], ids=["own", "shared"])
def test_results_do_not_depend_on_the_batch_or_on_where_others_stop(settings):
    model = made(**settings)
    utterances = speech(16000, 9000, 24000, 12000)
    whole = tiny.every_exit(model, utterances)
    for layer in (1, 2, 4):
        results = tiny.asr(model, FixedExitPolicy(layer)).recognise(utterances)
        for result, every in zip(results, whole, strict=True):
            row = next(row for row in every.rows if row.evidence.layer == layer)
            assert (result.text, result.token_ids) == (row.hypothesis, row.evidence.tokens)
    assert len({row.hypothesis for every in whole for row in every.rows}) > 2


def test_a_stop_computes_no_block_above_and_every_head_once():
    model = made(**OWN)
    calls: list[str] = []
    watched = {f"block {n}": block for n, block in enumerate(model.encoder.encoders, 1)}
    watched |= {"head 1": model.exit_ctc["1"], "head 2": model.exit_ctc["2"], "condition": model.encoder.conditioning_layer}
    asr = tiny.asr(model, FixedExitPolicy(2))
    for name, module in watched.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    asr.recognise(speech(16000))
    assert calls == ["block 1", "head 1", "condition", "block 2", "head 2"]


def test_blocks_read_the_exits_own_head():
    model = made(**OWN)
    before = tiny.every_exit(model, speech(16000))[0].rows
    with torch.no_grad():
        model.exit_ctc["1"].ctc_lo.weight.neg_()
    after = tiny.every_exit(model, speech(16000))[0].rows
    assert all(one.evidence.entropy != other.evidence.entropy for one, other in zip(before, after, strict=True))


def test_heads_and_conditioning_are_counted_where_they_are_computed():
    table, plain = (
        mac_table(made(**OWN)),
        mac_table(tiny.model(encoder_conf={**OWN["encoder_conf"], "interctc_use_conditioning": False})),
    )
    features, size, vocabulary = 103, 16, len(tiny.TOKENS)
    frames = table.encoder_frames(features)
    for passed, layer in enumerate((1, 2, 4)):
        more = table.encoder_macs(layer, features) - plain.encoder_macs(layer, features)
        assert more == frames * size * vocabulary * (passed + 1 + passed)  # the heads up to it, conditioning of those below
        assert table.head_macs(layer, frames) == frames * EVIDENCE_MACS * vocabulary


def test_a_training_step_reaches_the_conditioning_layer():
    model = tiny.model(**OWN).train()
    batch = (torch.randn(2, 16000), torch.tensor([16000, 12000]), torch.tensor([[3, 4], [5, 3]]), torch.tensor([2, 2]))
    model(*batch)[0].backward()
    assert model.encoder.conditioning_layer.weight.grad.abs().sum() > 0


def test_an_exit_is_a_self_conditioned_stock_model_where_stock_has_its_heads(tmp_path):
    from espnet2.tasks.asr import ASRTask

    (tmp_path / "own").mkdir()
    shared, own = tiny.save(tmp_path, model := made(**SHARED), **SHARED), tiny.save(tmp_path / "own", made(**OWN), **OWN)
    with pytest.raises(UserError, match="exit_layer 2: its blocks read exits with heads or norms of their own"):
        export_stock(*own, 2, tmp_path / "out")
    export_stock(*own, 1, tmp_path / "own1")
    samples = speech(16000)[0]
    batch = torch.tensor(samples)[None], torch.tensor([len(samples)])
    with torch.no_grad():
        (final, below), _ = model.encode(*batch)
        for layer, hs in [*below, (4, final)]:
            folder = export_stock(*shared, layer, tmp_path / f"exit{layer}")
            stock, _ = ASRTask.build_model_from_file(folder / "config.yaml", folder / "model.pth")
            out, _ = stock.eval().encode(*batch)
            assert torch.equal(out[0] if isinstance(out, tuple) else out, hs)
            assert ("encoder.conditioning_layer.weight" in stock.state_dict()) == (layer > 1)


def test_what_cannot_go_with_it_is_one_line():
    with pytest.raises(UserError, match="exit_gradients: scaled"):
        tiny.model(**OWN, model_conf={"ctc_weight": 1.0, "exit_gradients": "scaled"})
    with pytest.raises(UsageError, match="compute it in its model"):
        tiny.encoder([1, 2, 4], interctc_use_conditioning=True)(torch.randn(1, 60, 80), torch.tensor([60]))
