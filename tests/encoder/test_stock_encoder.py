"""``early_exit_stock``: what a stock encoder gives block by block is what it gives; what does not fit is refused."""

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from espnet2.tasks.asr import ASRTask, encoder_choices
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espnet_ee.encoder.base import EarlyExitEncoder
from espnet_ee.encoder.stock import TESTED, EarlyExitStockEncoder, driven_class
from espnet_ee.errors import UsageError
from espnet_ee.host.compat import espnet_version
from espnet_ee.plugin.register import register
from tests import tiny

register()
STOCK = sorted(name for name, cls in encoder_choices.classes.items() if not issubclass(cls, EarlyExitEncoder))
# Why each of the others is refused. The page for users says the same.
REFUSED = {
    "contextual_block_conformer": "ValueError: too many values",
    "contextual_block_transformer": "ValueError: too many values",
    "transformer_multispkr": "it is more than its blocks one after another",
    "hubert_pretrain": "needs a package: ",
    "longformer": "needs a package: ",
    **dict.fromkeys(
        ("avhubert", "beats", "hubert", "rnn", "torchaudiohubert", "vgg_rnn", "wav2vec2", "whisper"), "it has no num_blocks"
    ),
}
VARIANTS = [
    {},
    {"multicgmlp_type": "sum"},
    {"multicgmlp_type": "weighted_sum", "macaron_style": True},
    {"multicgmlp_type": "concat", "use_linear_after_conv": True},
    {"use_cnn_module": False, "input_layer": "conv2d6"},
    {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn", "input_layer": "linear"},
]


def features(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(len(lengths), max(lengths), 80), torch.tensor(lengths)


def made(exit_layers=(1, 2, 4), exit_norm="shared", **conf) -> torch.nn.Module:
    torch.manual_seed(0)
    encoder = EarlyExitStockEncoder(80, exit_layers=list(exit_layers), exit_norm=exit_norm, **{**tiny.MULTICONV, **conf})
    tiny.stir_batch_norm(encoder)
    return encoder.eval()


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def variant(request) -> tuple[dict, torch.nn.Module]:
    return request.param, made(**request.param)


def test_exits_are_those_of_stock_interctc_bit_for_bit(variant):
    conf, ours = variant
    known = {key: value for key, value in {**tiny.MULTICONV, **conf}.items() if key != "stock_encoder"}
    stock = encoder_choices.classes["multiconv_conformer"](80, **known, rel_pos_type="latest", interctc_layer_idx=[1, 2]).eval()
    assert list(ours.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(ours.state_dict())
    # 202511 leaks padding into its neighbours: only there must the batch be of one length.
    xs, ilens = features(90, 90) if espnet_version() == "202511" else features(90, 51)
    (out, below), olens, _ = ours(xs, ilens)
    (stock_out, stock_below), stock_olens, _ = stock(xs, ilens)
    assert torch.equal(out, stock_out) and torch.equal(olens, stock_olens)
    assert [layer for layer, _ in below] == [layer for layer, _ in stock_below] == [1, 2]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(below, stock_below, strict=True))


def test_outputs_do_not_depend_on_the_batch(variant):
    tiny.assert_the_batch_does_not_matter(variant[1])


@pytest.mark.parametrize("frames", [15, 83, 502])
def test_compute_is_what_torch_counts(variant, frames):
    _, encoder = variant
    expected = encoder.shape().segment_macs(frames, encoder.exit_layers)
    for exits, macs in enumerate(expected, 1):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            passing = encoder.iter_exits(*features(frames))
            for _ in range(exits):
                next(passing)
        assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize(
    ("backbone", "changes"), [*((name, {}) for name in tiny.BACKBONES), ("transformer", {"use_sdpa": True})], ids=str
)
def test_encoders_with_an_entry_of_their_own_are_the_same_through_this_one(backbone, changes):
    if not changes.keys() <= _taken(backbone, changes).keys():
        pytest.skip(f"this ESPnet's {backbone} has no {', '.join(changes)}")
    own = tiny.encoder([1, 2, 4], backbone=backbone, **changes)
    generic = EarlyExitStockEncoder(80, backbone, [1, 2, 4], **tiny.BACKBONES[backbone][1], **changes).eval()
    generic.load_state_dict(own.state_dict())
    xs, ilens = features(90, 51)
    for one, other in zip(own.iter_exits(xs, ilens), generic.iter_exits(xs, ilens), strict=True):
        assert torch.equal(one.hs, other.hs) and torch.equal(one.olens, other.olens)
    for frames in (7, 90, 1250, 3001):
        assert own.shape().segment_macs(frames, [1, 2, 4]) == generic.shape().segment_macs(frames, [1, 2, 4])
        assert own.shape().encoder_frames(frames) == generic.shape().encoder_frames(frames)


def test_every_encoder_of_this_espnet_is_either_tested_or_refused():
    assert sorted({*TESTED, *tiny.BACKBONES, *REFUSED}) == STOCK
    page = (Path(__file__).parents[2] / "egs/TEMPLATE/README.md").read_text(encoding="utf-8")
    assert set(REFUSED) <= set(re.findall(r"`(\w+)`", page)), "the page for users lacks some"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_driven_is_refused_in_one_line(name):
    conf = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 2}
    conf.update(attention_windows=[4, 4], attention_dilation=[1, 1])
    with pytest.raises(UsageError, match=f"stock_encoder {name} .*({REFUSED[name]})") as raised:
        EarlyExitStockEncoder(80, name, [1, 2], **_taken(name, conf))
    assert "\n" not in str(raised.value)


def _taken(name: str, conf: dict) -> dict:
    """The settings that an encoder's constructor knows: an unknown one would be refused for another reason."""
    known = inspect.signature(encoder_choices.classes[name].__init__).parameters
    return {key: value for key, value in conf.items() if key in known}


class Sees(torch.nn.Module):
    """A block that is changed by what ``see`` adds."""

    def __init__(self, block, see):
        super().__init__()
        self.block, self.see = block, see

    def forward(self, xs, masks):
        xs, masks = self.block(xs, masks)
        return xs + self.see(xs), masks


def pad_to_eight(xs: torch.Tensor) -> torch.Tensor:
    """A product whose size jumps: as of attention in windows."""
    padded = torch.nn.functional.pad(xs, (0, 0, 0, -xs.size(1) % 8))
    return (padded @ padded.new_ones(xs.size(2), xs.size(2)))[:, : xs.size(1)] * 0.01


@pytest.mark.parametrize(
    ("see", "message"),
    [
        (lambda xs: xs * 0.5, None),
        (lambda xs: xs.mean(dim=1, keepdim=True), "its outputs depend on the padding"),
        (lambda xs: xs.roll(1, dims=0), "it is more than its blocks one after another|its outputs depend on the padding"),
        (pad_to_eight, "its compute for 37 frames follows no formula"),
        (lambda xs: xs * float(xs[0, 0, 0].item() > 9), "RuntimeError: Tensor.item"),
    ],
    ids=["good", "mean over padding", "sees its neighbour", "irregular compute", "depends on values"],
)
def test_an_encoder_of_ones_own_is_tried_out(monkeypatch, see, message):
    class Own(TransformerEncoder):
        """In somebody's own table: ``encoder_choices.classes["own"] = Own``."""

        def __init__(self, input_size: int, output_size: int = 16, num_blocks: int = 2):
            super().__init__(input_size, output_size, 2, 24, num_blocks)
            self.encoders[0] = Sees(self.encoders[0], see)

    monkeypatch.setitem(encoder_choices.classes, "own", Own)
    try:
        if message is None:
            encoder = EarlyExitStockEncoder(80, "own", [1, 2])
            assert [exit_.layer for exit_ in encoder.iter_exits(*features(60))] == [1, 2]
        else:
            with pytest.raises(UsageError, match=f"stock_encoder own cannot be driven block by block: .*({message})"):
                EarlyExitStockEncoder(80, "own", [1, 2])
    finally:
        driven_class.cache_clear()


def test_trying_out_leaves_no_trace():
    """A model is the same with the same seed, whether something was tried out in between or not."""
    torch.manual_seed(7)
    encoder = EarlyExitStockEncoder(80, exit_layers=[2, 4], **tiny.MULTICONV)
    after = torch.rand(1)
    torch.manual_seed(7)
    settings = {key: value for key, value in tiny.MULTICONV.items() if key != "stock_encoder"}
    stock = encoder_choices.classes["multiconv_conformer"](80, **settings, rel_pos_type="latest")
    assert torch.equal(torch.rand(1), after)
    assert encoder.training
    for name, value in stock.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value)


def test_a_copy_is_an_encoder_of_its_own():
    encoder = made()
    copied = copy.deepcopy(encoder)
    assert type(copied) is type(encoder) and copied.shape() == encoder.shape()
    xs, ilens = features(60)
    assert torch.equal(copied(xs, ilens)[0][0], encoder(xs, ilens)[0][0])


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"stock_encoder": "no_such"}, "stock_encoder 'no_such' is none of ESPnet's encoders: avhubert, "),
        ({"stock_encoder": ""}, "stock_encoder '' is none"),
        ({"stock_encoder": "early_exit_conformer"}, "is none of ESPnet's encoders"),
        ({"lineer_units": 3}, "unknown key 'lineer_units'; .*multicgmlp_type"),
        ({"interctc_layer_idx": [1]}, "unknown key 'interctc_layer_idx'"),
        ({"rel_pos_type": "legacy"}, "rel_pos_type 'legacy' cannot be used"),
        ({"exit_layers": [2]}, "lack the last block"),
    ],
)
def test_mistakes_are_named(conf, message):
    with pytest.raises(UsageError, match=message):
        made(**conf)


def test_print_config_shows_its_settings(monkeypatch):
    monkeypatch.setattr("sys.argv", ["asr_train", "--encoder", "early_exit_stock"])
    shown = ASRTask.get_default_config()["encoder_conf"]
    assert shown == {"stock_encoder": "", "exit_layers": [], "exit_norm": "shared"}
