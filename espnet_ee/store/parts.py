"""A model built from its classes, without ESPnet's ASR task: importing that takes five times as long as torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.asr.preencoder.linear import LinearProjection
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_ee.encoder.espnet_blocks import BlockListEncoder, effective
from espnet_ee.errors import UserError
from espnet_ee.host.compat import make_mel_filters_light, make_pad_masks_linear
from espnet_ee.host.signature import reject_unknown_keys
from espnet_ee.plugin.classes import ENCODERS, FRONTENDS, MODELS
from espnet_ee.plugin.mistakes import one_line

# What an early-exit model is usually made of, by ESPnet's keys and names: a part of ESPnet's tables of choices.
_CLASSES: dict[str, Mapping[Any, Any]] = {
    "frontend": {"default": DefaultFrontend, **FRONTENDS},
    "specaug": {None: None, "specaug": SpecAug},
    "normalize": {None: None, "global_mvn": GlobalMVN, "utterance_mvn": UtteranceMVN},
    "preencoder": {None: None, "linear": LinearProjection},
    "encoder": {**ENCODERS},
    "postencoder": {None: None},
    "decoder": {None: None, "transformer": TransformerDecoder},
    "model": {"espnet": ESPnetASRModel, **MODELS},
}


def are_known(config: Mapping[str, Any]) -> bool:
    """Whether :func:`assemble` can build this model; what it cannot is for ESPnet's task, which also says what is wrong."""
    parts = {part: classes for part, classes in _CLASSES.items() if part != "frontend" or config.get("input_size") is None}
    sections = [config.get(f"{part}_conf") or {} for part in (*_CLASSES, "ctc")]
    return (
        isinstance(config["token_list"], list)
        and all(config.get(part) in tuple(classes) for part, classes in parts.items())
        and all(isinstance(section, dict) for section in sections)
        and "transducer_multi_blank_durations" not in sections[-2]  # of the model: ESPnet adds tokens for it
    )


def assemble(config: Mapping[str, Any]) -> ESPnetASRModel:
    """The model that ``espnet2.tasks.asr.ASRTask.build_model`` builds of parts that :func:`are_known`, made in the same order.

    Its parameters are to be loaded: they are not initialised as ``init`` says.

    Raises:
        UserError: a part does not take its settings.
    """
    make_pad_masks_linear()
    make_mel_filters_light()
    with one_line("model"):
        tokens, size, frontend = list(config["token_list"]), config.get("input_size"), None
        if size is None:
            frontend = _make(config, "frontend")
            size = frontend.output_size()
        specaug, normalize = _make(config, "specaug"), _make(config, "normalize")
        preencoder = _make(config, "preencoder")
        encoder = _make(config, "encoder", input_size=size if preencoder is None else preencoder.output_size())
        sizes = {"encoder_output_size": encoder.output_size()}
        decoder = _make(config, "decoder", vocab_size=len(tokens), **sizes)
        ctc = _construct(CTC, config, "ctc", odim=len(tokens), **sizes)
        return _make(
            config,
            "model",
            vocab_size=len(tokens),
            token_list=tokens,
            frontend=frontend,
            specaug=specaug,
            normalize=normalize,
            preencoder=preencoder,
            encoder=encoder,
            postencoder=None,
            decoder=decoder,
            ctc=ctc,
            joint_network=None,
        )


def _make(config: Mapping[str, Any], part: str, **arguments: Any) -> Any:
    cls = _CLASSES[part][config.get(part)]
    return None if cls is None else _construct(cls, config, part, **arguments)


def _construct(cls: Any, config: Mapping[str, Any], part: str, **arguments: Any) -> Any:
    settings = config.get(f"{part}_conf") or {}
    if issubclass(cls, BlockListEncoder):
        settings = effective(settings, cls.drops_layers)
    if part != "preencoder":  # whose input_size is written down
        reject_unknown_keys(cls, f"{part}_conf", settings)
    try:
        inspect.signature(cls).bind(**settings, **arguments)
    except TypeError as error:
        raise UserError(f"{part}_conf: {error}") from None
    return cls(**settings, **arguments)
