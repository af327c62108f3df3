"""Speech recognition that stops as early as its policy allows, from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ee.data.audio import read_any
from espnet_ee.data.inputs import float_samples
from espnet_ee.decode.loop import ExitSession, Recognition, UtteranceError, recognise
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.errors import UserError
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.registry import POLICIES
from espnet_ee.search.beam import NBestSearch
from espnet_ee.store.checkpoint import load_trained
from espnet_ee.store.package import open_model
from espnet_ee.store.train_config import sampling_rate

Policy = ExitPolicy | DecodingConfig | str | Path | None
"""When to stop: a policy, a decoding configuration, the name of one that came with the model, a YAML file; None: its default."""


class EarlyExitASR:
    """Recognises audio; every utterance stops as early as the policy allows.

    Args:
        session: computes the model.
        sample_rate: of the audio the model takes, in Hz.
        policy: when to stop; None: the final exit.
        configs: decoding configurations that came with the model, by name.

    Raises:
        UserError: the policy does not fit the model.

    Example:
        >>> asr = EarlyExitASR.from_pretrained("exp/asr/package")  # doctest: +SKIP
        >>> asr.transcribe("a.wav").text  # doctest: +SKIP
        'HELLO'
    """

    def __init__(
        self,
        session: ExitSession[Any],
        sample_rate: int,
        policy: Policy = None,
        configs: Mapping[str, DecodingConfig] | None = None,
    ) -> None:
        self.session, self.sample_rate, self.configs = session, sample_rate, dict(configs or {})
        self.use(policy)

    @classmethod
    def from_files(
        cls, train_config: str | Path, model_file: str | Path, policy: Policy = None, device: str = "cpu"
    ) -> EarlyExitASR:
        """Loads a training's ``config.yaml`` and its parameters.

        Args:
            train_config: ``exp/.../config.yaml``.
            model_file: ``exp/.../*.pth``.
            policy: when to stop; None: the final exit.
            device: torch device.

        Raises:
            UserError: a file is missing or does not fit, or the policy does not.
        """
        config = _resolve(policy, {})
        model, trained = load_trained(train_config, model_file, device)
        return cls(TorchSession(model), sampling_rate(trained), config)

    @classmethod
    def from_pretrained(cls, source: str | Path, policy: Policy = None, device: str = "cpu") -> EarlyExitASR:
        """Loads a package (nothing in it is trusted), an experiment, or a model of the Hugging Face hub.

        Args:
            source: its folder, or ``owner/model``.
            policy: when to stop; None: a package's default, else the final exit.
            device: torch device.

        Raises:
            UserError: there is no such model, it is damaged, or the policy does not fit it.
        """
        package = open_model(source, device)
        chosen = package.config() if policy is None else policy
        return cls(TorchSession(package.model), package.sample_rate, chosen, package.configs)

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The model's exits: 1-based numbers of the blocks they follow."""
        return self.session.exit_layers

    def use(self, policy: Policy) -> None:
        """Changes the policy for what is recognised from now on; None: the final exit."""
        config = _resolve(policy, self.configs)
        checked = config.policy_for(self.exit_layers)
        if checked.nbest:  # said now, not at the first utterance
            NBestSearch(checked.nbest, len(self.session.tokens), self.session.blank)
        self.config = replace(config, policy=checked)

    def transcribe(self, audio: str | Path | np.ndarray, rate: int | None = None) -> Recognition:
        """Recognises one file or array of any rate, resampled to the model's; channels are averaged.

        Args:
            audio: a file that libsndfile reads; ``.npy`` with features (L, F) for a model that takes these; or samples (T,) or (T, channels), floats in [-1, 1] or integers on the
                scale of their type.
            rate: an array's sampling rate in Hz.

        Raises:
            UserError: the audio cannot be read, or an array comes without its rate.
        """
        if isinstance(audio, np.ndarray):
            if rate is None:
                raise UserError(
                    f"samples without a rate: give it, transcribe(samples, {self.sample_rate}) if it is the model's"
                )
            return self.recognise([float_samples(audio, rate, self.sample_rate)])[0]
        if rate is not None:
            raise UserError(f"{audio}: a file says its rate itself; leave it out")
        samples = _features(audio) if str(audio).endswith(".npy") else read_any(audio, self.sample_rate)[0]
        try:
            return self.recognise([samples])[0]
        except UtteranceError as error:
            raise UserError(f"{audio}: {error}") from None

    def recognise(self, batch: Sequence[np.ndarray]) -> list[Recognition]:
        """Recognises utterances together; the results are those of each alone.

        Args:
            batch: samples (T,) in [-1, 1] at the model's rate, or features (L, F) for a model of extracted features.
        """
        return recognise(self.session, self.config, batch)


def _features(path: str | Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not an array of features: {error}") from None


def _resolve(policy: Policy, configs: Mapping[str, DecodingConfig]) -> DecodingConfig:
    if policy is None:
        return DecodingConfig()
    if isinstance(policy, DecodingConfig):
        return policy
    if isinstance(policy, ExitPolicy):
        return DecodingConfig(policy)
    name = str(policy).removeprefix("decode_")  # as its file is called
    if name in configs:
        return configs[name]
    if Path(policy).is_file():
        return DecodingConfig.read(policy)
    if str(policy) in POLICIES:  # one that needs no settings; of others the line says what they need
        return DecodingConfig.from_mapping({"policy": str(policy)}, "policy")
    known = ", ".join(configs) or "none"
    raise UserError(f"policy {str(policy)!r}: no such file, and the model came with {known}")
