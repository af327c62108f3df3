"""Stock InterCTC models gain early exit without training; exits leave as stock models that need no plug-in."""

import argparse
import json
import subprocess
import sys
from contextlib import nullcontext
from itertools import groupby

import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

from espnet_ee.errors import UsageError, UserError
from espnet_ee.host.compat import espnet_version
from espnet_ee.model.heads import exit_heads_of
from espnet_ee.plugin.task import EarlyExitASRTask, refuse_other_positions
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.store.checkpoint import load_model
from espnet_ee.store.export_stock import export_stock
from tests import tiny

LENGTHS = (16000, 9000, 24000, 12345)
INTERCTC = ("conformer", "transformer", "e_branchformer", "multiconv_conformer")
FILES = ("config.yaml", "model.pth")


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(random.standard_normal(length) * 0.1).astype(np.float32) for length in LENGTHS]


SELF_CONDITIONED = {"interctc_use_conditioning": True}


def stock_settings(backbone: str, **changes) -> dict:
    """A stock InterCTC model's configuration."""
    latest = tiny.STOCK_ONLY if "conformer" in backbone else {}
    conf = {**tiny.BACKBONES[backbone][1], **latest, "interctc_layer_idx": [1, 2], **changes}
    return {
        "encoder": backbone,
        "encoder_conf": conf,
        "model": "espnet",
        "model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.5},
    }


def stock_model(seed: int = 0, **settings) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = ASRTask.build_model(argparse.Namespace(**tiny.config(**settings)))
    tiny.stir_batch_norm(made)
    return talkative(made.eval())


def talkative(model: torch.nn.Module) -> torch.nn.Module:
    """Heads that say different tokens for different frames: untrained ones say one token for all."""
    for name, parameter in model.named_parameters():
        if name.endswith("ctc_lo.weight"):
            torch.nn.init.normal_(parameter)
    return model


def greedy(model: torch.nn.Module, hs: torch.Tensor) -> list[int]:
    """Stock's own way of reading an intermediate exit (``Speech2Text._decode_interctc``)."""
    with torch.no_grad():
        best = model.ctc.argmax(hs.clone())[0].tolist()
    return [token for token, _ in groupby(best) if token != model.blank_id]


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("backbone", INTERCTC)
def test_a_stock_interctc_model_stops_early_without_training(tmp_path, speech, backbone, conditioned):
    settings = stock_settings(backbone, **SELF_CONDITIONED if conditioned else {})
    stock = stock_model(**settings)
    loaded = load_model(*tiny.save(tmp_path, stock, **settings))
    assert loaded.encoder.exit_layers == (1, 2, 4) and loaded.encoder.conditioned == conditioned
    said = set()
    for samples in speech:
        with torch.no_grad():
            (final, below), _ = stock.encode(torch.tensor(samples)[None], torch.tensor([len(samples)]))
        for layer, hs in [*below, (4, final)]:
            result = tiny.asr(loaded, FixedExitPolicy(layer)).recognise([samples])[0]
            assert result.exit_layer == layer
            assert list(result.tokens) == [tiny.TOKENS[token] for token in greedy(stock, hs)]
            said.add(result.tokens)
    assert len(said) > 3  # or every exit said the same, and nothing was tested


@pytest.mark.parametrize("changes", [{}, SELF_CONDITIONED], ids=str)
@pytest.mark.parametrize("backbone", ["conformer", "e_branchformer", "multiconv_conformer"])
def test_older_relative_positions_are_those_of_stock_whatever_the_batch(tmp_path, speech, backbone, changes):
    """They look at the length of what is computed: stock, which recognises one utterance at a time, has each one's own."""
    settings = stock_settings(backbone, rel_pos_type="legacy", **changes)
    stock = stock_model(**settings)
    loaded = load_model(*tiny.save(tmp_path, stock, **settings))
    for layer in (1, 2, 4):
        results = tiny.asr(loaded, FixedExitPolicy(layer)).recognise(speech)
        for samples, result in zip(speech, results, strict=True):
            with torch.no_grad():
                (final, below), _ = stock.encode(torch.tensor(samples)[None], torch.tensor([len(samples)]))
            hs = (dict(below) | {4: final})[layer]
            assert list(result.tokens) == [tiny.TOKENS[token] for token in greedy(stock, hs)]
            with torch.no_grad():
                score = stock.ctc.log_softmax(hs).max(dim=-1).values.sum()
            assert result.score == pytest.approx(float(score), rel=1e-5)
    newer = load_model(*tiny.save(tmp_path, stock, **stock_settings(backbone, rel_pos_type="latest", **changes)))
    assert tiny.asr(newer, FixedExitPolicy(4)).recognise(speech)[0].score != pytest.approx(results[0].score, rel=1e-4)


def test_older_relative_positions_leave_with_their_exit(tmp_path, speech):
    settings = stock_settings("conformer", rel_pos_type="legacy")
    stock = stock_model(**settings)
    folder = export_stock(*tiny.save(tmp_path, stock, **settings), 2, tmp_path / "out")
    alone = ASRTask.build_model(argparse.Namespace(**yaml.safe_load((folder / "config.yaml").read_text()))).eval()
    alone.load_state_dict(torch.load(folder / "model.pth"))
    for samples in speech:
        with torch.no_grad():
            (_, below), _ = stock.encode(torch.tensor(samples)[None], torch.tensor([len(samples)]))
        assert torch.equal(final_exit(alone, samples), stock.ctc.log_softmax(dict(below)[2]))


def test_a_stock_model_with_an_attention_decoder_loads(tmp_path, speech):
    decoder = {"decoder": "transformer", "decoder_conf": {"linear_units": 8, "num_blocks": 1, "attention_heads": 2}}
    settings = {**stock_settings("conformer"), **decoder, "model_conf": {"ctc_weight": 0.3, "interctc_weight": 0.5}}
    loaded = load_model(*tiny.save(tmp_path, stock_model(**settings), **settings))
    assert tiny.asr(loaded, FixedExitPolicy(2)).recognise(speech[:1])[0].exit_layer == 2


@pytest.mark.parametrize(
    ("backbone", "changes", "message"),
    [
        ("conformer", {"ctc_trim": True}, "config.yaml: .*ctc_trim True"),
        ("conformer", {"interctc_layer_idx": []}, "interctc_layer_idx"),
        ("multiconv_conformer", {"interctc_layer_idx": []}, "interctc_layer_idx"),
    ],
)
def test_stock_models_that_cannot_stop_are_refused(tmp_path, backbone, changes, message):
    settings = stock_settings(backbone, **changes)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny.config(**settings)))
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "config.yaml", tmp_path / "model.pth")


def test_an_encoder_that_cannot_be_driven_by_blocks_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny.config(encoder="vgg_rnn", encoder_conf={}, model="espnet")))
    with pytest.raises(UserError, match="'vgg_rnn'.* early_exit_transformer"):
        load_model(tmp_path / "config.yaml", tmp_path / "model.pth")


def separate(backbone: str) -> dict:
    return {
        "encoder": f"early_exit_{backbone}",
        "encoder_conf": {**tiny.BACKBONES[backbone][1], "exit_layers": [1, 2, 4], "exit_norm": "separate"},
    }


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_an_exported_exit_is_the_exit_bit_for_bit(tmp_path, speech, backbone):
    model = talkative(tiny.model(seed=2, **separate(backbone)))
    config, checkpoint = tiny.save(tmp_path, model, **separate(backbone))
    for exit_layer in (1, 2, 4):
        folder = export_stock(config, checkpoint, exit_layer, tmp_path / f"exit{exit_layer}")
        stock, _ = ASRTask.build_model_from_file(folder / "config.yaml", folder / "model.pth")
        assert type(stock.encoder).__module__.startswith("espnet2.")
        assert len(stock.encoder.encoders) == exit_layer
        recogniser = tiny.asr(model, FixedExitPolicy(exit_layer))
        for samples in speech:
            with torch.no_grad():
                hs, _ = stock.eval().encode(torch.tensor(samples)[None], torch.tensor([len(samples)]))
                features = recogniser.session.features(samples)[None]
                exits = model.encoder.iter_exits(features, torch.tensor([features.size(1)]))
                ours = next(output for output in exits if output.layer == exit_layer)
                logits = exit_heads_of(model).logits(exit_layer, ours.hs, ours.olens)
                assert torch.equal(stock.ctc.log_softmax(hs), logits.log_softmax(-1))
            tokens = recogniser.recognise([samples])[0].tokens
            assert list(tokens) == [tiny.TOKENS[token] for token in greedy(stock, hs)]


# What a stranger without the plug-in runs. The stock search is run on the exit's own frames, too.
STRANGER = """
import json, sys
from itertools import groupby
import soundfile
import torch
from espnet2.bin.asr_inference import Speech2Text
folder, *audio = sys.argv[1:]
recognise = Speech2Text(f"{folder}/config.yaml", f"{folder}/model.pth", ctc_weight=1.0, beam_size=2)
texts = {}
for path in audio:
    samples, _ = soundfile.read(path, dtype="float32")
    hs, _ = recognise.asr_model.encode(torch.tensor(samples)[None], torch.tensor([len(samples)]))
    best = [int(i) for i, _ in groupby(recognise.asr_model.ctc.argmax(hs)[0].tolist()) if i != 0]
    greedy = " ".join(recognise.tokenizer.tokens2text(recognise.converter.ids2tokens(best)).split())
    texts[path] = [greedy, recognise(samples)[0][2]]
print(json.dumps([texts, [name for name in sys.modules if name.startswith("espnet_ee")]]))
"""


@pytest.mark.process
def test_a_stranger_recognises_the_same_text_without_the_plug_in(tmp_path, speech):
    from espnet2.bin.asr_inference import Speech2Text

    stats = tmp_path / "feats_stats.npz"
    np.savez(stats, count=9, sum=np.arange(80.0), sum_square=np.arange(80.0) ** 2 + 9)
    changes = {"normalize": "global_mvn", "normalize_conf": {"stats_file": str(stats)}, "token_type": "char", "bpemodel": None}
    model = talkative(tiny.model(seed=2, **changes))
    folder = export_stock(*tiny.save(tmp_path, model, **changes), 2, tmp_path / "exit2")
    stats.unlink()  # the export must not need what it was made from
    paths = []
    for number, samples in enumerate(speech):
        soundfile.write(tmp_path / f"{number}.wav", samples, 16000, subtype="FLOAT")
        paths.append(str(tmp_path / f"{number}.wav"))
    done = subprocess.run([sys.executable, "-c", STRANGER, str(folder), *paths], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    texts, plug_in = json.loads(done.stdout.splitlines()[-1])
    assert plug_in == []
    search = Speech2Text(folder / "config.yaml", folder / "model.pth", ctc_weight=1.0, beam_size=2)
    recogniser = tiny.asr(model, FixedExitPolicy(2))
    for path, samples in zip(paths, speech, strict=True):
        text, beam = texts[path]
        assert recogniser.recognise([samples])[0].text == text
        features = recogniser.session.features(samples)[None]
        with torch.no_grad():
            ours = list(model.encoder.iter_exits(features, torch.tensor([features.size(1)])))[1]
            assert search._decode_single_sample(ours.hs[0])[0][2] == beam


def test_what_cannot_be_exported_is_named_and_nothing_is_written(tmp_path):
    conf = {**tiny.BACKBONES["e_branchformer"][1], "exit_layers": [2, 4], "exit_norm": "none"}
    settings = {"encoder": "early_exit_e_branchformer", "encoder_conf": conf}
    paths = tiny.save(tmp_path, tiny.model(**settings), **settings)
    with pytest.raises(UsageError, match="exit_layer 3: .* 2, 4"):
        export_stock(*paths, 3, tmp_path / "out")
    with pytest.raises(UserError, match="exit_layer 2: .*exit_norm"):
        export_stock(*paths, 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_stock(*paths, 4, tmp_path / "out")


LATEST = [
    stock_settings("conformer"),
    {"encoder": "early_exit_conformer", "encoder_conf": {}},
    stock_settings("e_branchformer"),
]


def early_exit_from_stock(tmp_path, positions="latest", **model_conf) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A stock conformer, and an early-exit model that began as it (ESPnet's ``--init_param``)."""
    stock = stock_model(seed=3, **stock_settings("conformer", interctc_layer_idx=[], rel_pos_type=positions))
    torch.save(stock.state_dict(), tmp_path / "stock.pth")
    conf = {**tiny.CONFORMER, "exit_layers": [1, 2, 4], "exit_norm": "separate", "rel_pos_type": positions}
    model = tiny.model(seed=4, encoder_conf=conf, model_conf={"ctc_weight": 1.0, **model_conf})
    load_pretrained_model(str(tmp_path / "stock.pth"), model, ignore_init_mismatch=False)
    return stock, model


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        (stock_settings("conformer", rel_pos_type="legacy"), True),
        ({"encoder": "conformer", "encoder_conf": {}}, True),  # ESPnet's default
        ({"encoder": "conformer", "encoder_conf": {"pos_enc_layer_type": "legacy_rel_pos"}}, True),
        (stock_settings("conformer"), False),
        ({"encoder": "conformer", "encoder_conf": {"pos_enc_layer_type": "abs_pos"}}, False),
        (stock_settings("transformer"), False),
        (stock_settings("e_branchformer"), False),
        ({"encoder": "early_exit_conformer", "encoder_conf": {}}, False),
        ({"encoder": "gone", "encoder_conf": None}, False),
    ],
    ids=str,
)
def test_init_param_of_other_positions_is_refused(tmp_path, settings, refused):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    for part in ("", ":encoder:encoder", ":encoder.encoders:encoder.encoders"):
        with pytest.raises(UserError, match="rel_pos_type") if refused else nullcontext():
            refuse_other_positions([f"{tmp_path}/valid.acc.ave.pth{part}"], "early_exit_conformer", {})
        with pytest.raises(UserError, match="rel_pos_type") if settings in LATEST else nullcontext():
            refuse_other_positions([f"{tmp_path}/valid.acc.ave.pth{part}"], "early_exit_conformer", {"rel_pos_type": "legacy"})
        refuse_other_positions([f"{tmp_path}/valid.acc.ave.pth{part}"], "early_exit_transformer", {})
    elsewhere = [f"{tmp_path}/valid.acc.ave.pth:ctc:ctc", f"{tmp_path}/alone/valid.acc.ave.pth"]
    refuse_other_positions(elsewhere, "early_exit_conformer", {})


def test_a_training_does_not_begin_with_other_positions(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stock_settings("conformer", rel_pos_type="legacy")))
    begins = argparse.Namespace(encoder="early_exit_conformer", init_param=[f"{tmp_path}/a.pth"])
    with pytest.raises(UserError, match=f"{tmp_path}/a.pth"):
        EarlyExitASRTask.main_worker(begins)


def final_exit(model: torch.nn.Module, samples: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        out, _ = model.eval().encode(torch.tensor(samples)[None], torch.tensor([len(samples)]))
        return model.ctc.log_softmax(out[0] if isinstance(out, tuple) else out)


@pytest.mark.parametrize("positions", ["latest", "legacy"])
def test_init_param_of_a_stock_conformer_makes_it_the_final_exit(tmp_path, speech, positions):
    stock, model = early_exit_from_stock(tmp_path, positions)
    for samples in speech:
        assert torch.equal(final_exit(stock, samples), final_exit(model, samples))


def as_other_version(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint as the other version of ESPnet would have written it."""
    names = {
        "embed.out.0.weight": "embed.out.weight",
        "embed.out.0.bias": "embed.out.bias",
        "embed.out.1.alpha": "embed.pos_enc.alpha",
    }
    if espnet_version() != "202511":
        names = {new: old for old, new in names.items()}
    others = {f"encoder.{name}": f"encoder.{other}" for name, other in names.items()}
    assert len(others.keys() & state.keys()) >= 2
    return {others.get(name, name): value for name, value in state.items()}


SCALED = {"pos_enc_layer_type": "scaled_abs_pos", "selfattention_layer_type": "selfattn"}


@pytest.mark.parametrize("part", ["", "encoder"])
@pytest.mark.parametrize("changes", [{}, SCALED], ids=str)
def test_init_param_of_the_other_version_leaves_nothing_at_random(tmp_path, speech, changes, part):
    stock = stock_model(seed=3, **stock_settings("conformer", interctc_layer_idx=[], **changes))
    for name, value in stock.named_parameters():
        if name.endswith("alpha"):
            torch.nn.init.constant_(value, 0.5)
    model = tiny.model(seed=4, encoder_conf={**tiny.CONFORMER, "exit_layers": [2, 4], **changes})
    torch.save(as_other_version(stock.state_dict()), tmp_path / "stock.pth")
    load_pretrained_model(f"{tmp_path}/stock.pth" + (f":{part}:{part}" if part else ""), model, ignore_init_mismatch=False)
    if not part:
        assert torch.equal(final_exit(stock, speech[0]), final_exit(model, speech[0]))
    for name, value in stock.encoder.embed.state_dict().items():
        assert torch.equal(value, model.encoder.embed.state_dict()[name])


def test_stock_speech2text_reads_a_model_of_the_other_version_whole(tmp_path):
    """It loads with ``strict=False``, and would leave the layer at random without a word."""
    model = tiny.model(seed=4)
    fresh = tiny.model(seed=5)
    assert fresh.load_state_dict(as_other_version(model.state_dict()), strict=False).missing_keys == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])


@pytest.mark.parametrize("heads", ["separate", "shared"])
def test_stock_inference_warns_of_exits_that_it_reads_with_the_wrong_head(tmp_path, caplog, heads):
    conf = {"model_conf": {"ctc_weight": 1.0, "exit_heads": heads}}
    EarlyExitASRTask.build_model_from_file(*tiny.save(tmp_path, tiny.model(**conf), **conf))
    assert ("encoder_interctc_layer*.txt is not" in caplog.text) == (heads == "separate")


@pytest.mark.parametrize("keep_final", [True, False])
def test_heads_learn_alone_over_a_frozen_backbone(tmp_path, speech, keep_final):
    stock, model = early_exit_from_stock(tmp_path, freeze_backbone=True)
    if keep_final:
        model.ctc.requires_grad_(False)  # --freeze_param ctc
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    batch = (torch.randn(2, 16000), torch.tensor([16000, 12000]), torch.tensor([[3, 4], [5, 3]]), torch.tensor([2, 2]))
    for _ in range(2):
        optimizer.zero_grad()
        model.train()
        model(*batch)[0].backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    heads = {name for name in before if name.startswith(("exit_ctc.", "encoder.exit_norms."))}
    assert changed == heads | (set() if keep_final else {"ctc.ctc_lo.weight", "ctc.ctc_lo.bias"})
    if keep_final:
        assert torch.equal(final_exit(stock, speech[0]), final_exit(model, speech[0]))


def test_an_export_replaces_nothing_but_an_export(tmp_path):
    config, checkpoint = tiny.save(tmp_path, tiny.model(seed=2))
    with pytest.raises(UserError, match=f"{tmp_path}: .*{config}"):
        export_stock(config, checkpoint, 2, tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("x")
    with pytest.raises(UserError, match=f"{tmp_path}/thesis"):
        export_stock(config, checkpoint, 2, tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter.tex").exists()
    export_stock(config, checkpoint, 2, tmp_path / "out")
    export_stock(config, checkpoint, 1, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "lack"),
    [
        ({"frontend": "kaldi_fbank", "frontend_conf": {}}, "frontend kaldi_fbank"),
        (
            {
                "encoder": "early_exit_fast_conformer",
                "encoder_conf": {"output_size": 16, "attention_heads": 2, "num_blocks": 2, "exit_layers": [1, 2]},
            },
            "encoder early_exit_fast_conformer",
        ),
    ],
)
def test_what_stock_espnet_has_not_is_named(tmp_path, changes, lack):
    config, checkpoint = tiny.save(tmp_path, tiny.model(**changes), **changes)
    with pytest.raises(UserError, match=lack):
        export_stock(config, checkpoint, 1, tmp_path / "exit01")
    assert not (tmp_path / "exit01").exists()
