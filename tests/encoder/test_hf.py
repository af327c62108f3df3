"""wav2vec 2.0, HuBERT and WavLM driven block by block are transformers' own, alone and in a batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espnet_ee.decode.loop import recognise
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.errors import UsageError, UserError
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from tests import hf, tiny


def library_states(family: str, pre_norm: bool, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Hidden states of one utterance (L,) before the first block and after each, as transformers computes them."""
    model, states = hf.library_model(family, pre_norm), []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda _, given, made: states.append(made[0] if isinstance(made, tuple) else made))
    with torch.no_grad():
        told = model(samples[None], output_hidden_states=True)
    assert len(states) == hf.BLOCKS
    for own, theirs in zip(states, told.hidden_states[1:], strict=True):
        # What is handed out is what a block gives, but for the last one of a model with norms before its blocks.
        assert torch.equal(own, theirs) or (pre_norm and own is states[-1])
    return (told.hidden_states[0], *states, told.last_hidden_state)


def as_trained(samples: torch.Tensor) -> torch.Tensor:
    """What transformers' feature extractor makes of an utterance (L,)."""
    extractor = hf.transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    return torch.tensor(extractor(samples.numpy(), sampling_rate=16000).input_values[0])


@hf.every_kind
def test_alone_every_block_gives_what_the_library_gives(saved: Any, family: str, pre_norm: bool) -> None:
    made = hf.encoder(saved(family, pre_norm), normalize_waveform=False)
    samples = hf.audio((6543,))[0][0]
    if family == "wavlm":  # with its attention in place of the fused one
        own = type(hf.library_model(family).encoder.layers[0].attention)
        for layer in made.encoders:
            layer.attention.__class__ = own
    with torch.no_grad():
        state = made.start(samples[None], torch.tensor([6543]))
        states = [state.hidden]
        while state.layer < hf.BLOCKS:
            output = made.advance(state)
            state = output.state
            states.append(state.hidden)
    for layer, (ours, theirs) in enumerate(zip([*states, output.hs], library_states(family, pre_norm, samples), strict=True)):
        assert torch.equal(ours, theirs), f"layer {layer}: {(ours - theirs).abs().max()}"


@hf.every_kind
def test_in_a_batch_an_utterance_has_what_the_library_gives_it_alone(saved: Any, family: str, pre_norm: bool) -> None:
    made = hf.encoder(saved(family, pre_norm))
    xs, ilens = hf.audio()
    with torch.no_grad():
        together = list(made.iter_exits(xs, ilens))
    for row, length in enumerate(hf.LENGTHS):
        theirs = library_states(family, pre_norm, as_trained(xs[row, :length]))
        frames = theirs[0].size(1)
        for output, states in zip(together, theirs[1:-1], strict=True):
            assert int(output.olens[row]) == frames
            torch.testing.assert_close(output.state.hidden[row, :frames], states[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[-1].hs[row, :frames], theirs[-1][0], atol=1e-5, rtol=1e-5)


@hf.every_kind
def test_outputs_do_not_depend_on_the_batch(saved: Any, family: str, pre_norm: bool) -> None:
    made = hf.encoder(saved(family, pre_norm))
    xs, ilens = hf.audio()
    with torch.no_grad():
        together = list(made.iter_exits(xs, ilens))
        for row, length in enumerate(hf.LENGTHS):
            alone = list(made.iter_exits(xs[row : row + 1, :length], ilens[row : row + 1]))
            for one, all_ in zip(alone, together, strict=True):
                assert one.olens[0] == all_.olens[row] == one.hs.size(1)
                torch.testing.assert_close(one.hs[0], all_.hs[row, : one.hs.size(1)], atol=1e-5, rtol=1e-5)


@hf.every_kind
def test_whoever_goes_on_has_what_the_full_pass_gives(saved: Any, family: str, pre_norm: bool) -> None:
    made = hf.encoder(saved(family, pre_norm))
    xs, ilens = hf.audio()
    rows = [1, 3]
    with torch.no_grad():
        (final, below), olens, _ = made(xs, ilens)
        state = made.advance(made.start(xs, ilens)).state.select(rows)
        assert state.hidden.size(1) == int(olens[1])
        later = made.advance(state)
    assert later.layer == 2 and later.olens.tolist() == olens[rows].tolist()
    assert [layer for layer, _ in below] == [1, 2, 3] and final.size(2) == made.output_size()
    for place, row in enumerate(rows):
        frames = int(olens[row])
        torch.testing.assert_close(later.hs[place, :frames], below[1][1][row, :frames], atol=1e-5, rtol=1e-5)


@hf.every_kind
def test_no_block_above_the_stop_is_computed(saved: Any, family: str, pre_norm: bool) -> None:
    made, computed = hf.encoder(saved(family, pre_norm), (2, hf.BLOCKS)), []
    for number, layer in enumerate(made.encoders, 1):
        layer.register_forward_hook(lambda *_, number=number: computed.append(number))
    exits = made.iter_exits(*hf.audio())
    next(exits)
    assert computed == [1, 2]
    next(exits)
    assert computed == [1, 2, 3, 4]


def test_exits_of_a_model_with_norms_before_its_blocks_have_their_own(saved: Any) -> None:
    pre, post = hf.encoder(saved("wavlm", True)), hf.encoder(saved("wavlm", False))
    norms = [pre.exit_norm_of(layer) for layer in pre.exit_layers]
    assert len({id(norm) for norm in norms}) == 4 and all(torch.equal(norm.bias, pre.after_norm.bias) for norm in norms)
    assert norms[-1] is pre.after_norm and [post.exit_norm_of(layer) for layer in post.exit_layers] == [None] * 4


@pytest.mark.parametrize("normalize", [True, False])
def test_samples_are_normalised_as_the_model_was_trained(tmp_path: Path, normalize: bool) -> None:
    folder = hf.save(tmp_path, "wav2vec2", True, normalize=normalize)
    samples, length = hf.audio((6543,))[0], torch.tensor([6543])
    expected = as_trained(samples[0])[None] if normalize else samples
    with torch.no_grad():
        own = hf.encoder(folder).start(samples, length).hidden
        plain = hf.encoder(folder, normalize_waveform=False).start(expected, length).hidden
    torch.testing.assert_close(own, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "pre_norm"), [("wav2vec2", False), ("wavlm", True)])
def test_macs_are_those_that_torch_counts(saved: Any, family: str, pre_norm: bool) -> None:
    made = hf.encoder(saved(family, pre_norm))
    table = made.macs()
    for samples in (400, 719, 720, 5000, 12345):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for output in made.iter_exits(torch.randn(1, samples), torch.tensor([samples])):
                assert counter.get_total_flops() == 2 * table.encoder_macs(output.layer, samples)


@pytest.mark.parametrize("family", hf.FAMILIES)
def test_an_utterance_without_a_frame_harms_no_other(saved: Any, family: str) -> None:
    made = hf.encoder(saved(family))
    xs, ilens = hf.audio((3000, 3000))
    with torch.no_grad():
        outputs = list(made.iter_exits(xs, torch.tensor([3000, 399])))
        alone = list(made.iter_exits(xs[:1], ilens[:1]))
    assert outputs[0].olens.tolist() == [9, 0]
    for output, one in zip(outputs, alone, strict=True):
        torch.testing.assert_close(output.hs[0], one.hs[0], atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_a_fine_tuned_model_is_one_too(tmp_path: Path) -> None:
    """Its parameters have the family's name before their own, and there are some more."""
    inner = hf.library_model("wav2vec2")
    outer = hf.transformers.Wav2Vec2ForCTC(inner.config)
    outer.wav2vec2.load_state_dict(inner.state_dict())
    outer.save_pretrained(tmp_path)
    made = hf.encoder(str(tmp_path))
    assert torch.equal(made.encoders[3].attention.q_proj.weight, inner.encoder.layers[3].attention.q_proj.weight)


def test_half_precision_weights_are_trained_in_single(tmp_path: Path) -> None:
    hf.library_model("hubert").half().save_pretrained(tmp_path)
    assert {value.dtype for value in hf.encoder(str(tmp_path)).parameters()} == {torch.float32}


# --- what is said of mistakes ------------------------------------------------------------------------------------------


def test_a_pickle_alone_is_refused_and_never_opened(tmp_path: Path) -> None:
    folder = Path(hf.save(tmp_path, "wavlm"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pytorch_model.bin, a pickle; convert it once.*save_pretrained"):
        hf.encoder(str(folder))


def test_a_name_of_the_hub_is_not_asked_for_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    with pytest.raises(UserError, match="nobody/has-this: no such folder, and"):
        hf.encoder("nobody/has-this")
    with pytest.raises(UserError, match=r"\./nothing/here: no such folder"):
        hf.encoder("./nothing/here")


def spoil(folder: str, changes: dict[str, Any]) -> None:
    import json

    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "whisper"}, "config.json: model_type 'whisper' is not one of wav2vec2, hubert, wavlm"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim"),
        ({"hidden_size": 32}, "transformers cannot make a model of it"),
        ({"hidden_size": "16"}, "hidden_size '16' cannot be|config.json: transformers cannot"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers 1000000 cannot be"),
        ({"num_hidden_layers": 6}, "its weights lack encoder.layers.4"),
        ({"hidden_act": "os.system"}, "hidden_act 'os.system' cannot be"),
        ({"num_attention_heads": 3}, "no multiple of num_attention_heads 3"),
    ],
    ids=str,
)
def test_a_folder_that_is_no_model_of_these_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = hf.save(tmp_path, "wav2vec2")
    spoil(folder, changes)
    with pytest.raises(UserError, match=message) as refusal:
        hf.encoder(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("name", "content"), [("config.json", b"{"), ("config.json", b"[]"), ("model.safetensors", b"junk")])
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    folder = hf.save(tmp_path, "hubert")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path)) as refusal:
        hf.encoder(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_layers": (2, 3)}, "lack the last block; add 4"),
        ({"layerdrop": 1.0}, "layerdrop 1.0 is no rate"),
        ({"mask_time_prob": "1e-3"}, "mask_time_prob '1e-3' is no rate"),
        ({"layer_decay": 0}, "layer_decay 0 is not above"),
        ({"unfreeze_step": 0.5}, "unfreeze_step 0.5"),
        ({"mask_time_length": 0}, "mask_time_length 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(saved: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hf.encoder(saved("wav2vec2"), **changes)


def test_it_takes_audio_and_says_how(saved: Any) -> None:
    from espnet_ee.encoder.hf import EarlyExitHfEncoder

    with pytest.raises(UsageError, match="takes audio, not features of 80 values: set frontend: null and input_size: 1"):
        EarlyExitHfEncoder(80, [4], saved("wav2vec2"))
    with pytest.raises(UsageError, match="needs pretrained"):
        EarlyExitHfEncoder(1, [4])
    masks = {"specaug": "specaug", "specaug_conf": {"time_mask_width_range": [0, 5]}}
    for part, conf in (("normalize", {"normalize": "utterance_mvn", "normalize_conf": {}}), ("specaug", masks)):
        with pytest.raises(UserError, match=f"{part}: .*early_exit_hf"):
            hf.model(saved("wav2vec2"), conf)
    with pytest.raises(UserError, match="init: xavier_uniform"):
        hf.model(saved("wav2vec2"), {"init": "xavier_uniform"})


def test_without_transformers_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch, saved: Any) -> None:
    import espnet_ee.encoder

    folder = saved("wav2vec2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "espnet_ee.encoder.hf_models", raising=False)
    monkeypatch.delattr(espnet_ee.encoder, "hf_models", raising=False)
    with pytest.raises(UserError, match=r"transformers is not installed; .*pip install -e '\.\[ssl\]'"):
        hf.encoder(folder)


@pytest.mark.process
def test_other_models_load_without_transformers() -> None:
    program = "import sys, espnet_ee.plugin.classes, espnet_ee.store.parts; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"


def test_recognition_of_audio(saved: Any) -> None:
    """Through the loop that stops: frames of 20 ms, and what an exit says in a batch is what it says alone."""
    model = hf.model(saved("wavlm"))
    session = TorchSession(model, 16000)
    assert session.frame_seconds == pytest.approx(0.02)
    xs, ilens = hf.audio()
    utterances = [xs[row, :length].numpy() for row, length in enumerate(ilens.tolist())]
    utterances.append(np.zeros(100, np.float32))  # less than a frame
    every = tiny.every_exit(model, utterances)
    entropies = [result.rows[0].evidence.entropy for result in every]
    stopped = recognise(session, DecodingConfig(EntropyPolicy(float(np.median(entropies)))), utterances)
    assert {result.exit_layer for result in stopped} == {2, hf.BLOCKS}
    for result, whole in zip(stopped, every, strict=True):
        exit_ = next(row for row in whole.rows if row.evidence.layer == result.exit_layer)
        assert result.evidence.entropy == pytest.approx(exit_.evidence.entropy, rel=1e-4)
