"""Fine-tuning: what is kept as it is does not move, every exit learns, and a training that goes on goes on."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from espnet_ee.errors import UsageError, UserError
from espnet_ee.plugin.finetuning import adapt_optimizers, split_by_rate
from tests import hf, tiny

every_family = pytest.mark.parametrize("family", hf.FAMILIES)


def optimizer_of(model: torch.nn.Module, lr: float = 3e-3, scheduler: str | None = None) -> torch.optim.Optimizer:
    """As our task makes it; its weight decay moves whatever has a gradient, even of 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    adapt_optimizers([optimizer], model, scheduler)
    return optimizer


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Iterator[dict[str, float]]:
    """Statistics of every step."""
    model.train()
    for _ in range(steps):
        loss, stats, _ = model(*hf.BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield {name: float(value) for name, value in stats.items()}


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers as they are now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    """Names of what is another than before."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


@hf.every_kind
def test_every_exit_learns_and_the_convolutions_stay(saved: Any, family: str, pre_norm: bool) -> None:
    model = hf.model(saved(family, pre_norm), layerdrop=0.1, mask_time_prob=0.2, mask_time_length=2, mask_feature_prob=0.1)
    before = state(model)
    torch.manual_seed(0)
    steps = list(train(model, optimizer_of(model), 40))
    for layer in (2, hf.BLOCKS):
        assert steps[-1][f"loss_exit{layer:02d}"] < 0.5 * steps[0][f"loss_exit{layer:02d}"]
    still = {name for name in before if name.startswith("encoder.feature_extractor.")}
    assert still and moved(before, model) == set(before) - still


def test_all_of_it_trains_where_nothing_is_frozen(saved: Any) -> None:
    model = hf.model(saved("wav2vec2"), freeze_feature_extractor=False)
    before = state(model)
    list(train(model, optimizer_of(model), 2))
    assert moved(before, model) == set(before)


@hf.every_kind
def test_until_the_step_heads_and_norms_train_alone(saved: Any, family: str, pre_norm: bool) -> None:
    model = hf.model(saved(family, pre_norm), unfreeze_step=3, mask_time_prob=0.2, mask_time_length=2, dropout_rate=0.1)
    before, optimizer = state(model), optimizer_of(model)
    list(train(model, optimizer, 3))
    heads = {name for name in before if name.startswith(("ctc.", "exit_ctc."))}
    norms = {name for name in before if name.startswith(("encoder.exit_norms.", "encoder.after_norm."))}
    assert bool(norms) == pre_norm
    assert moved(before, model) == heads | norms | {"encoder.updates"}
    assert not model.encoder.frozen and model.encoder.encoders.training and not model.encoder.feature_extractor.training
    list(train(model, optimizer, 1))
    assert "encoder.encoders.0.attention.q_proj.weight" in moved(before, model)


def test_statistics_of_what_is_frozen_stay(tmp_path: Path) -> None:
    """Some HuBERT models have a batch norm before the first block."""
    folder = hf.save(tmp_path, "hubert", conv_pos_batch_norm=True)
    model = hf.model(folder, unfreeze_step=2)
    before, optimizer = state(model), optimizer_of(model)
    running = {name for name in before if "running" in name}
    list(train(model, optimizer, 2))
    assert running and not running & moved(before, model)
    list(train(model, optimizer, 1))
    assert running <= moved(before, model)


def test_steps_are_updates_and_a_resumed_training_goes_on_with_them(saved: Any) -> None:
    """Accumulated gradients are one update; the count comes back with the parameters."""
    model, again = (hf.model(saved("hubert"), unfreeze_step=4) for _ in range(2))
    optimizer = optimizer_of(model)
    model.train()
    for step in range(6):
        model(*hf.BATCH)[0].backward()
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert int(model.encoder.updates) == 3 and model.encoder.frozen
    again.load_state_dict(model.state_dict())
    resumed = optimizer_of(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, other in zip(train(model, optimizer, 4), train(again, resumed, 4), strict=True):
        assert one == other
    assert not again.encoder.frozen
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_without_a_trainer_that_counts_a_frozen_model_would_stay_so_for_good(saved: Any) -> None:
    model = hf.model(saved("wavlm"), unfreeze_step=4).train()
    with pytest.raises(UsageError, match="unfreeze_step counts updates"):
        model(*hf.BATCH)


def test_blocks_have_the_learning_rates_of_their_depth(saved: Any) -> None:
    model = hf.model(saved("wav2vec2", True), layer_decay=0.5)
    optimizer = optimizer_of(model, lr=0.8)
    rate = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    names = dict(model.named_parameters())
    assert set(rate) == set(map(id, names.values()))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}
    blocks = [rate[id(names[f"encoder.encoders.{block}.attention.q_proj.weight"])] for block in range(hf.BLOCKS)]
    assert blocks == [0.1, 0.2, 0.4, 0.8]
    for name in ("ctc.ctc_lo.weight", "exit_ctc.2.ctc_lo.bias", "encoder.exit_norms.2.weight", "encoder.after_norm.bias"):
        assert rate[id(names[name])] == 0.8
    for name in ("encoder.feature_projection.projection.weight", "encoder.pos_conv_embed.conv.bias"):
        assert rate[id(names[name])] == 0.05
    # ESPnet's schedulers multiply what a group began with.
    from espnet2.schedulers.warmup_lr import WarmupLR

    WarmupLR(optimizer, warmup_steps=4)
    assert optimizer.param_groups[0]["lr"] / optimizer.param_groups[1]["lr"] == pytest.approx(2)
    with pytest.raises(UsageError, match="piecewiselinearwarmuplr gives every block the same"):
        optimizer_of(model, scheduler="piecewiselinearwarmuplr")


def test_groups_that_were_there_stay_apart() -> None:
    a, b, c = (torch.nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a, b], "weight_decay": 0.0}, {"params": [c], "weight_decay": 0.1}], lr=1.0)
    split_by_rate(optimizer, {a: 0.5})
    told = [([id(value) for value in group["params"]], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert told == [([id(b)], 1.0, 0.0), ([id(a)], 0.5, 0.0), ([id(c)], 1.0, 0.1)]


def test_masks_are_drawn_in_training_alone_and_never_in_padding(saved: Any) -> None:
    encoder = hf.encoder(saved("wav2vec2"), mask_time_prob=0.5, mask_time_length=2, layerdrop=0.0)
    hidden, real = torch.ones(3, 20, 16), torch.arange(20) < torch.tensor([20, 10, 1])[:, None]
    assert torch.equal(encoder._masked(hidden, real), hidden)
    encoder.train()
    masked = (encoder._masked(hidden, real) == encoder.masked_spec_embed).all(dim=2)
    assert masked[0].any() and masked[1].any() and not masked[1, 10:].any()
    encoder.masks = ((0.0, 2), (0.5, 4))
    dropped = encoder._masked(hidden, real) == 0
    assert dropped.any() and torch.equal(dropped, dropped[:, :1].expand_as(dropped))


def test_an_average_gradient_reaches_wavlms_bias_too(saved: Any) -> None:
    """Every block reads the bias: ``exit_gradients: scaled`` scales what comes back to it as what comes back to the blocks."""
    gradients = []
    for kind in ("full", "scaled"):
        model = hf.model(saved("wavlm"), {"model_conf": {"ctc_weight": 1.0, "exit_gradients": kind}}).train()
        torch.manual_seed(0)
        model(*hf.BATCH)[0].backward()
        gradients.append(model.encoder.encoders[0].attention.rel_attn_embed.weight.grad.norm())
    assert 0 < gradients[1] < gradients[0]


# --- the configuration ---------------------------------------------------------------------------------------------------


def test_a_training_writes_what_the_model_is_and_begins_with_the_weights(saved: Any) -> None:
    from espnet_ee.plugin.finetuning import begin_from_pretrained
    from espnet_ee.plugin.task import EarlyExitASRTask

    folder = saved("wavlm", True)
    args = argparse.Namespace(**tiny.config(**hf.settings(folder)))
    first = EarlyExitASRTask.build_model(args)
    assert args.encoder_conf["architecture"]["model_type"] == "wavlm" and args.encoder_conf["pretrained"] == folder
    # Who loads it needs the folder no more.
    elsewhere = argparse.Namespace(**{**vars(args), "encoder_conf": {**args.encoder_conf, "pretrained": "/nowhere"}})
    again = EarlyExitASRTask.build_model(elsewhere)
    assert again.state_dict().keys() == first.state_dict().keys()
    again.load_state_dict(first.state_dict())
    xs, ilens = hf.audio()
    with torch.no_grad():
        assert torch.equal(*(model.eval().encode(xs, ilens)[0][0] for model in (first, again)))
    # Another training with this config.yaml does begin with the weights.
    begin_from_pretrained(args)
    assert "architecture" not in args.encoder_conf
    key = "encoder.encoders.0.attention.q_proj.weight"
    assert torch.equal(EarlyExitASRTask.build_model(args).state_dict()[key], first.state_dict()[key])


@every_family
def test_an_architecture_alone_is_a_model_without_training(saved: Any, family: str) -> None:
    from espnet_ee.encoder.hf import EarlyExitHfEncoder

    made = hf.encoder(saved(family))
    again = EarlyExitHfEncoder(1, [hf.BLOCKS], architecture=made.architecture)
    shapes = {name: value.shape for name, value in made.state_dict().items()}
    assert shapes == {name: value.shape for name, value in again.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not one of"),
        ({"model_type": ["wavlm"]}, "model_type"),
        ({"auto_map": "x"}, "auto_map is no setting"),
        ({"hidden_size": None}, "hidden_size None cannot be"),
        ({"num_hidden_layers": 257}, "num_hidden_layers 257 cannot be"),
        ({"conv_dim": [8]}, "of different lengths"),
        ({"conv_kernel": [1 << 17] * 7}, "conv_kernel .* cannot be"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm 'batch' cannot be"),
        ({"conv_bias": 1}, "conv_bias 1 cannot be"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps nan cannot be"),
        ({"num_conv_pos_embedding_groups": 3}, "no multiple of num_conv_pos_embedding_groups"),
    ],
    ids=str,
)
def test_an_architecture_that_cannot_be(saved: Any, change: dict[str, Any], message: str) -> None:
    from espnet_ee.encoder.hf import EarlyExitHfEncoder

    table = {**hf.encoder(saved("wavlm")).architecture, **change}
    with pytest.raises(UserError, match=f"encoder_conf: architecture: .*{message}"):
        EarlyExitHfEncoder(1, [hf.BLOCKS], architecture=table)


@pytest.mark.parametrize("key", ["hidden_size", "num_buckets", "do_normalize"])
def test_an_architecture_that_lacks_something(saved: Any, key: str) -> None:
    from espnet_ee.encoder.hf import EarlyExitHfEncoder

    table = {name: value for name, value in hf.encoder(saved("wavlm")).architecture.items() if name != key}
    with pytest.raises(UserError, match=f"encoder_conf: architecture: lacks {key}"):
        EarlyExitHfEncoder(1, [hf.BLOCKS], architecture=table)
