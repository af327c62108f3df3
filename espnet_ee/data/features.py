"""Features as a model's frontend computes them from audio, stored in Kaldi archives.

The frontend that computes them is the very module which a model on audio has (``default`` or ``kaldi_fbank``), so that a model
trained on stored features takes audio without any difference.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from espnet_ee.data.audio import read_audio
from espnet_ee.data.clip import Clip
from espnet_ee.data.derived import derived_dir
from espnet_ee.data.kaldi_ark import write_ark
from espnet_ee.data.parallel import ordered_map
from espnet_ee.data.skips import Prepared, Skip
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import read_yaml
from espnet_ee.host.rate import parse_rate

if TYPE_CHECKING:
    from espnet2.asr.frontend.abs_frontend import AbsFrontend

STORED = ("default", "kaldi_fbank")
"""Frontends whose features can be stored."""

MAX_ARKS = 64
UTTERANCES_PER_ARK = 64
"""An archive is a job. Their number depends on the data alone, so that the files are the same for every ``nj``."""


@dataclass(frozen=True)
class _Job:
    utterances: tuple[tuple[str, Clip], ...]
    ark: Path
    frontend: str
    compress: bool


@dataclass(frozen=True)
class _Shard:
    scp: dict[str, str]
    frames: dict[str, int]
    skips: list[Skip]


def extract_features(
    source: Path,
    out: Path,
    conf_file: Path | None = None,
    nj: int = 1,
    compress: bool = False,
    max_skipped: float = 0,
) -> Prepared:
    """Makes the data directory ``out`` with feats.scp and archives in ``out/data``.

    Args:
        source: a data directory with wav.scp; its audio must have the frontend's sampling rate.
        out, nj, max_skipped: see :func:`espnet_ee.data.derived.derived_dir`.
        conf_file: the frontend as YAML, as a training configuration has it (``frontend:`` and ``frontend_conf:``), or plain
            options of DefaultFrontend. None means DefaultFrontend with its defaults.
        compress: store 8 bits a value (Kaldi's method 2) instead of 32.

    Raises:
        UserError: the options or the directory are broken, or more files than may be skipped.
    """
    stored = yaml.safe_dump(read_frontend(conf_file), sort_keys=False)
    feats_dim = build_frontend(stored).output_size()
    with derived_dir(source, out, "raw", max_skipped) as new:
        folder, tables = new.draft.folder, new.draft.tables
        if "," in str(folder) or "|" in str(folder):
            raise UsageError(f"--out {out}: Kaldi's tools read ',' and '|' as more than a path; give another folder")
        (folder / "data").mkdir()
        jobs = [
            _Job(shard, folder / "data" / f"feats.{number}.ark", stored, compress)
            for number, shard in enumerate(_shards(tuple(new.source.clips().items())), 1)
        ]
        results = ordered_map(_extract_shard, jobs, nj, f"features of {out.name} (archives)", chunk=1)
        skips = new.settle(skip for shard in results for skip in shard.skips)
        places = {utt_id: place for shard in results for utt_id, place in shard.scp.items()}
        tables["feats.scp"] = {utt_id: place.replace(str(folder), str(out), 1) for utt_id, place in places.items()}
        tables["utt2num_frames"] = {utt_id: str(count) for shard in results for utt_id, count in shard.frames.items()}
        new.draft.notes.update({"feats_type": "extracted\n", "feats_dim": f"{feats_dim}\n", "frontend.yaml": stored})
        return new.carry(places, skips)


def read_frontend(path: Path | None) -> dict[str, Any]:
    """The frontend that a YAML file describes, as ``frontend:`` and ``frontend_conf:`` with every option; ``fs`` in Hz.

    Raises:
        UserError: the file is not YAML, or names another frontend, or has an option that the frontend has not.
    """
    name, options = _read_options(path) if path else ("default", {})
    cls = frontend_class(name)
    parameters = inspect.signature(cls.__init__).parameters
    defaults = {key: value.default for key, value in parameters.items() if key not in ("self", "apply_stft")}
    for key in options:
        if key not in defaults:
            raise UserError(f"{path}: {cls.__name__} has no option {key!r}; it has {' '.join(defaults)}")
    conf = {**defaults, **options}
    try:
        conf["fs"] = parse_rate(conf["fs"])
    except ValueError:
        raise UserError(f"{path}: fs {conf['fs']!r} is no sampling rate; write 16000 or 16k") from None
    return {"frontend": name, "frontend_conf": conf}


def frontend_class(name: str) -> type[AbsFrontend]:
    """The class behind one of ``STORED``."""
    from espnet2.asr.frontend.default import DefaultFrontend

    from espnet_ee.frontend.kaldi_fbank import KaldiFbank

    return {"default": DefaultFrontend, "kaldi_fbank": KaldiFbank}[name]


def _read_options(path: Path) -> tuple[str, Mapping[str, Any]]:
    remedy = "give the frontend's options"
    options: Any = read_yaml(path, remedy, allow_empty=True)
    name = "default"
    if "frontend" in options:
        name, options = options["frontend"], options.get("frontend_conf") or {}
        if name not in STORED:
            raise UserError(f"{path}: frontend: {name!r} cannot be extracted; only {' and '.join(STORED)} can")
    if not isinstance(options, dict):
        raise UserError(f"{path}: frontend_conf must be 'key: value' lines; {remedy}")
    return name, options


def frame_shift(data_dir: str | Path) -> float:
    """Seconds from one frame to the next of a directory of extracted features, from its ``frontend.yaml``.

    Raises:
        UserError: the file is missing or does not tell.
    """
    where = Path(data_dir) / "frontend.yaml"
    remedy = "extract the features again"
    stored: Any = read_yaml(where, remedy)
    try:
        rate = stored["frontend_conf"]["fs"]
        hop = rate // 100 if stored.get("frontend") == "kaldi_fbank" else stored["frontend_conf"]["hop_length"]
        return hop / rate
    except (KeyError, TypeError, ZeroDivisionError):
        raise UserError(f"{where}: does not tell fs and hop_length; {remedy}") from None


@lru_cache(maxsize=1)
def build_frontend(stored: str) -> AbsFrontend:
    """Builds the frontend once a process; ``stored`` is YAML (:func:`read_frontend`) because a cache needs a hashable key."""
    options = yaml.safe_load(stored)
    cls = frontend_class(options["frontend"])
    try:
        frontend = cls(**options["frontend_conf"]).eval()
        # torch looks at some values only here
        compute_features(frontend, np.zeros(2 * options["frontend_conf"].get("n_fft", 512), np.float32))
        return frontend
    except Exception as error:  # whatever typeguard, librosa or torch say of a wrong value
        raise UserError(f"--frontend_conf: {cls.__name__} refuses these options: {error}") from None


def compute_features(frontend: AbsFrontend, samples: np.ndarray) -> np.ndarray:
    """Features (frames, bins) float32 of one utterance (T,) float32, computed alone: nothing depends on a batch."""
    import torch

    with torch.inference_mode():
        batch = torch.from_numpy(samples)[None]
        if not _is_plain_logmel(frontend):
            features, lengths = frontend(batch, torch.tensor([len(samples)]))
            return features[0, : int(lengths[0])].numpy()
        # The same two steps without the masks of padding: alone, nothing is padded, and making them takes a third of the time.
        spectrum, _ = frontend.stft(batch)
        features, _ = frontend.logmel(spectrum[..., 0] ** 2 + spectrum[..., 1] ** 2)
        return features[0].numpy()


def _is_plain_logmel(frontend: AbsFrontend) -> bool:
    """Is it a DefaultFrontend without enhancement?"""
    inner: Any = getattr(frontend, "frontend", None)
    enhances = inner is not None and bool(inner.use_wpe or inner.use_beamformer)
    return getattr(frontend, "stft", None) is not None and not enhances


def _shards(utterances: tuple[tuple[str, Clip], ...]) -> Iterator[tuple[tuple[str, Clip], ...]]:
    count = min(MAX_ARKS, -(-len(utterances) // UTTERANCES_PER_ARK))
    for index in range(count):
        yield utterances[index * len(utterances) // count : (index + 1) * len(utterances) // count]


def _extract_shard(job: _Job) -> _Shard:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bit of a matrix product depends on how many threads share it
    shard = _Shard({}, {}, [])
    try:
        shard.scp.update(write_ark(job.ark, _features(job, shard), job.compress))
    finally:
        torch.set_num_threads(threads)
    return shard


def _features(job: _Job, shard: _Shard) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the features of the utterances one by one (the archive is never in memory); notes frames and skips."""
    conf = yaml.safe_load(job.frontend)["frontend_conf"]
    frontend = build_frontend(job.frontend)
    for utt_id, clip in job.utterances:
        try:
            samples = _samples_for(frontend, conf, clip)
        except UserError as error:
            shard.skips.append(Skip(utt_id, str(error)))
            continue
        features = compute_features(frontend, samples)
        shard.frames[utt_id] = len(features)
        yield utt_id, features


def _samples_for(frontend: AbsFrontend, conf: Mapping[str, Any], clip: Clip) -> np.ndarray:
    samples, rate = read_audio(clip.path, clip.span)
    if rate != conf["fs"]:
        fs = conf["fs"]
        raise UserError(f"{clip.path}: has {rate} Hz, the frontend takes {fs}; run espnet-ee data format --fs {fs}")
    least = getattr(frontend, "min_samples", None)
    if least is not None and len(samples) < least:
        raise UserError(f"{clip.path}: {len(samples)} samples are too short for a frame; filter it out")
    if least is None and len(samples) < (conf["n_fft"] // 2 + 1 if conf["center"] else conf["n_fft"]):
        raise UserError(f"{clip.path}: {len(samples)} samples are too short for n_fft {conf['n_fft']}; filter it out")
    return samples
