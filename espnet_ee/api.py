"""Speech recognition that stops as early as its policy allows, from Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from espnet_ee.data.audio import float_samples, read_any
from espnet_ee.data.audio_files import AudioFile
from espnet_ee.data.recording import open_recording
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.reading import prepare_search
from espnet_ee.decode.recognition import Recognition
from espnet_ee.decode.session import ExitSession, UtteranceError
from espnet_ee.decode.stream import Endpoint, SpeechStream
from espnet_ee.decode.transcript import Transcriber, Transcript, when_asked
from espnet_ee.errors import UsageError, UserError, missing_packages_named
from espnet_ee.exported import DESCRIPTION, FOLDER, is_exported
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.registry import POLICIES, required_settings

TRAINED, ARCHIVE = "config.yaml", "meta.yaml"  # of a trained model; of what ESPnet's pack makes, which is refused elsewhere
Engine = Literal["torch", "onnx"]
"""What computes a model: torch and ESPnet, or ONNX Runtime (where the model was exported)."""

Policy = ExitPolicy | DecodingConfig | str | Path | None
"""When to stop: a policy, a decoding configuration, the name of one that came with the model, a YAML file; None: its default."""

Hotwords = Mapping[str, float] | Sequence[str] | None
"""Words, or several with blanks between them, with what each adds to a text's score; of a list each adds the same."""


class EarlyExitASR:
    """Recognises audio; every utterance stops as early as the policy allows.

    Args:
        session: computes the model.
        sample_rate: of the audio the model takes, in Hz.
        policy: when to stop; None: the final exit.
        configs: decoding configurations that came with the model, by name.
        hotwords: words that are to be preferred, with a boost each (natural logarithm, see
            :class:`espnet_ee.policy.searching.SearchConfig`), or as a list; a greedy search becomes a beam with them.

    Attributes:
        policy_name: the name of the decoding configuration in use, or of its policy where it has none.

    Raises:
        UserError: the policy does not fit the model, or its tokens do not spell a hotword.

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
        hotwords: Hotwords = None,
    ) -> None:
        self.session, self.sample_rate, self.configs = session, sample_rate, dict(configs or {})
        self.hotwords = hotwords
        self.use(policy)

    @classmethod
    def from_files(
        cls,
        train_config: str | Path,
        model_file: str | Path,
        policy: Policy = None,
        device: str = "cpu",
        hotwords: Hotwords = None,
    ) -> EarlyExitASR:
        """Loads a training's ``config.yaml`` and its parameters.

        Args:
            train_config: ``exp/.../config.yaml``.
            model_file: ``exp/.../*.pth``.
            policy, hotwords: see the class.
            device: torch device.

        Raises:
            UserError: a file is missing or does not fit, or the policy does not.
        """
        _resolve(policy, {})  # a mistake is said before a model is loaded
        with missing_packages_named():
            from espnet_ee.decode.torch_session import TorchSession
            from espnet_ee.store.checkpoint import load_trained
            from espnet_ee.store.train_config import sampling_rate
        model, trained = load_trained(train_config, model_file, device)
        rate = sampling_rate(trained)
        return cls(TorchSession(model, rate), rate, policy, hotwords=hotwords)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        policy: Policy = None,
        device: str = "cpu",
        engine: Engine | None = None,
        int8: bool | None = None,
        hotwords: Hotwords = None,
    ) -> EarlyExitASR:
        """Loads a package (nothing in it is trusted), an experiment, an export, or a model of the Hugging Face hub.

        Args:
            source: its folder, or ``owner/model``.
            policy: when to stop; None: the model's default (of an experiment the first that was calibrated), else the final exit.
            device: torch device; ONNX Runtime computes on the CPU.
            engine: what computes it; None: torch where it and the model's tensors are there, else ONNX Runtime.
            int8: of an export, whether the graphs of 8-bit weights are taken; None: only where there are no others.
            hotwords: see the class.

        Raises:
            UserError: there is no such model, it is damaged, the policy does not fit it, or a package is not installed.
        """
        if not isinstance(source, str | Path):
            raise UserError(f"a model is a folder's name, or one of the hub, not {source!r}")
        if engine not in (None, *get_args(Engine)):
            raise UsageError(f"engine {engine!r} is unknown; choose {' or '.join(get_args(Engine))}")
        if engine != "onnx":
            _check_holds_model(Path(source))
        onnx = (engine or _engine_for(source, int8, device)) == "onnx"
        if onnx and device != "cpu":
            raise UsageError(
                f"device {device}: ONNX Runtime computes on the CPU here; for another device take the engine torch"
            )
        if not onnx and int8 is not None:
            raise UsageError("int8: is for the engine onnx; torch computes with the parameters as they are stored")
        with missing_packages_named():
            session, rate, configs, default = _open_onnx(source, int8) if onnx else _open_torch(source, device)
        return cls(session, rate, default if policy is None else policy, configs, hotwords)

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The model's exits: 1-based numbers of the blocks they follow."""
        return self.session.exit_layers

    def use(self, policy: Policy) -> None:
        """Changes the policy for what is recognised from now on; None: the final exit."""
        name, config = _resolve(policy, self.configs)
        if self.hotwords:
            config = replace(config, search=config.search.with_hotwords(self.hotwords))
        checked = config.policy_for(self.exit_layers)
        prepare_search(self.session, config.search)  # said now, not at the first utterance
        self.config, self.policy_name = replace(config, policy=checked), name or checked.name

    def transcribe(self, audio: str | Path | np.ndarray, rate: int | None = None) -> Recognition:
        """Recognises one file or array of any rate, resampled to the model's; channels are averaged.

        Args:
            audio: a file that libsndfile reads; ``.npy`` with features (L, F) for a model that takes these; or samples (T,) or (T, channels), floats in [-1, 1] or integers on the
                scale of their type.
            rate: an array's sampling rate in Hz.

        Raises:
            UserError: the audio cannot be read, or an array comes without its rate.
        """
        if not isinstance(audio, (str, Path, np.ndarray)) or isinstance(audio, np.ma.MaskedArray):
            raise UserError(f"audio is a file's name, or a NumPy array of samples with its rate, not {type(audio).__name__}")
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

    def transcribe_recording(self, path: str | Path, longest: float = 20.0) -> Transcript:
        """Recognises a file of any length in bounded memory, in pieces that are cut where it is quietest.

        Args:
            path: a file that libsndfile reads.
            longest: seconds that a piece lasts at most.

        Raises:
            UserError: the file cannot be read or recognised.
        """

        def fail(_: AudioFile, error: UserError) -> None:
            raise error

        if not isinstance(path, str | Path):
            raise UserError(f"a recording is a file's name, not {type(path).__name__}; transcribe() takes samples")
        transcriber = Transcriber(
            lambda audio: open_recording(audio.path, self.sample_rate, longest),
            when_asked(lambda batch: [(recognition, self.policy_name) for recognition in self.recognise(batch)]),
            self.sample_rate,
            self.config.batch_size,
            fail,
        )
        return next(transcriber([AudioFile(str(path), Path(path))]))

    def stream(
        self,
        chunk_ms: int = 320,
        exit_layer: int | None = None,
        endpoint: Endpoint = Endpoint(),  # noqa: B008 - frozen
    ) -> SpeechStream:
        """A stream of audio that is recognised while it comes, by a model that was trained for chunks.

        Args:
            chunk_ms: milliseconds from one partial text to the next.
            exit_layer: the exit that these come from; None: the first. The policy says how deep a final text goes.
            endpoint: where a text becomes final.

        Raises:
            UserError: the model cannot stream, or not so.

        Example:
            >>> stream = asr.stream()  # doctest: +SKIP
            >>> partial = stream.feed(samples)  # doctest: +SKIP
            >>> partial.text, [final.text for final in partial.finals]  # doctest: +SKIP
            ('HEL', [])
        """
        model = getattr(self.session, "model", None)
        if model is None:
            raise UserError("an exported model takes whole utterances; a stream needs the engine torch")
        if not isinstance(chunk_ms, Real) or not math.isfinite(chunk_ms) or not isinstance(endpoint, Endpoint):
            raise UsageError(
                f"a stream of chunk_ms {chunk_ms!r}, endpoint {endpoint!r}: give a number, and an Endpoint(silence=0.8)"
            )
        from espnet_ee.decode.torch_stream import TorchStreamSession

        return SpeechStream(TorchStreamSession(model, self.sample_rate, chunk_ms, exit_layer), self.config, endpoint)

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


_Opened = tuple[ExitSession[Any], int, Mapping[str, DecodingConfig], str | None]
"""A model: its session, sampling rate in Hz, decoding configurations by name, and the default's name."""


def _check_holds_model(folder: Path) -> None:
    """Raises UserError for a folder without any model, before torch is asked for, which may not be there."""
    if folder.is_dir() and not is_exported(folder) and not any((folder / name).is_file() for name in (TRAINED, ARCHIVE)):
        raise UserError(
            f"{folder}: holds no model: neither {TRAINED} (a package, an experiment) nor {FOLDER}/{DESCRIPTION} (an export); "
            "check the path"
        )


def _engine_for(source: str | Path, int8: bool | None, device: str) -> Engine:
    """The engine where nobody names one."""
    folder, with_torch = Path(source), all(map(_is_installed, ("torch", "espnet2")))
    if int8 is not None or device != "cpu":
        return "torch" if int8 is None else "onnx"
    if not folder.is_dir():  # of the hub
        return "torch" if with_torch else "onnx"
    return "onnx" if is_exported(folder) and not (with_torch and (folder / TRAINED).is_file()) else "torch"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:  # somebody's hook forbids it
        return False


def _open_torch(source: str | Path, device: str) -> _Opened:
    from espnet_ee.decode.torch_session import TorchSession
    from espnet_ee.store.package import open_model

    package = open_model(source, device)
    return TorchSession(package.model, package.sample_rate), package.sample_rate, package.configs, package.default


def _open_onnx(source: str | Path, int8: bool | None) -> _Opened:
    from espnet_ee.runtime.model import open_export
    from espnet_ee.runtime.onnx_session import OnnxSession

    export = open_export(source)
    return OnnxSession(export, int8), export.sample_rate, export.configs, export.default


def _resolve(policy: Policy, configs: Mapping[str, DecodingConfig]) -> tuple[str | None, DecodingConfig]:
    """The decoding configuration and, where it has one, its name."""
    if policy is None:
        return None, DecodingConfig()
    if isinstance(policy, DecodingConfig):
        return None, policy
    if isinstance(policy, ExitPolicy):
        return None, DecodingConfig(policy)
    if not isinstance(policy, str | Path):
        raise UserError(
            f"policy {policy!r}: give a policy such as EntropyPolicy(0.01), the name of one of the model's, or a file"
        )
    name = str(policy).removeprefix("decode_")  # as its file is called
    if name in configs:
        return name, configs[name]
    if Path(policy).is_file():
        return Path(policy).stem.removeprefix("decode_"), DecodingConfig.read(policy)
    known = ", ".join(configs) or "none"
    if str(policy) not in POLICIES:
        raise UsageError(f"policy {str(policy)!r}: no such file, and the model came with {known}")
    try:
        config = DecodingConfig.from_mapping({"policy": str(policy)}, "policy")
        # What was measured of the model's words is no policy's: any of its configurations that has it tells it.
        said = next((known for known in configs.values() if known.confidences.knots), config)
        timed = next((known for known in configs.values() if known.word_exit or any(known.word_shift)), config)
        return None, replace(config, confidences=said.confidences, word_exit=timed.word_exit, word_shift=timed.word_shift)
    except UserError:
        needed = ", ".join(required_settings(str(policy)))
        raise UsageError(
            f"policy {policy}: its name alone does not tell its {needed}; give the file of a decoding configuration, or the name of "
            f"one that came with the model: {known}"
        ) from None
