"""Features as ESPnet's DefaultFrontend computes them in evaluation, stored in Kaldi archives."""

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

if TYPE_CHECKING:
    from espnet2.asr.frontend.default import DefaultFrontend

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
        out: the directory to make or replace.
        conf_file: options of DefaultFrontend as YAML, plain or as a training configuration has them (``frontend:
            default`` and ``frontend_conf:``). None means its defaults.
        nj: number of processes; does not change the result.
        compress: store 8 bits a value (Kaldi's method 2) instead of 32.
        max_skipped: percentage of the utterances that may be left out because their audio is broken.

    Returns:
        How many utterances it has, and which were skipped.

    Raises:
        UserError: the options or the directory are broken, or more files than may be skipped.
    """
    conf = read_frontend_conf(conf_file)
    feats_dim = build_frontend(yaml.safe_dump(conf)).output_size()
    with derived_dir(source, out, "raw", max_skipped) as new:
        folder, tables = new.draft.folder, new.draft.tables
        if "," in str(folder) or "|" in str(folder):
            raise UsageError(f"--out {out}: Kaldi's tools read ',' and '|' as more than a path; give another folder")
        (folder / "data").mkdir()
        jobs = [
            _Job(shard, folder / "data" / f"feats.{number}.ark", yaml.safe_dump(conf), compress)
            for number, shard in enumerate(_shards(tuple(new.source.clips().items())), 1)
        ]
        results = ordered_map(_extract_shard, jobs, nj, f"features of {out.name} (archives)", chunk=1)
        skips = new.settle(skip for shard in results for skip in shard.skips)
        places = {utt_id: place for shard in results for utt_id, place in shard.scp.items()}
        tables["feats.scp"] = {utt_id: place.replace(str(folder), str(out), 1) for utt_id, place in places.items()}
        tables["utt2num_frames"] = {utt_id: str(count) for shard in results for utt_id, count in shard.frames.items()}
        stored = yaml.safe_dump({"frontend": "default", "frontend_conf": conf}, sort_keys=False)
        new.draft.notes.update({"feats_type": "extracted\n", "feats_dim": f"{feats_dim}\n", "frontend.yaml": stored})
        return new.carry(places, skips)


def read_frontend_conf(path: Path | None) -> dict[str, Any]:
    """Every option of DefaultFrontend, with those in a YAML file replaced; ``fs`` as a number of Hz.

    Raises:
        UserError: the file is not YAML, or has an option that DefaultFrontend has not.
    """
    from espnet2.asr.frontend.default import DefaultFrontend

    parameters = inspect.signature(DefaultFrontend.__init__).parameters
    defaults = {name: value.default for name, value in parameters.items() if name not in ("self", "apply_stft")}
    options = _read_options(path) if path else {}
    for key in options:
        if key not in defaults:
            raise UserError(f"{path}: DefaultFrontend has no option {key!r}; it has {' '.join(defaults)}")
    conf = {**defaults, **options}
    if isinstance(conf["fs"], str):
        import humanfriendly

        try:
            conf["fs"] = humanfriendly.parse_size(conf["fs"])  # ESPnet's "16k"
        except humanfriendly.InvalidSize:
            raise UserError(f"{path}: fs {conf['fs']!r} is no sampling rate; write 16000 or 16k") from None
    return conf


def _read_options(path: Path) -> Mapping[str, Any]:
    remedy = "give options of DefaultFrontend"
    options = read_yaml(path, remedy, allow_empty=True)
    if "frontend" in options:
        if options["frontend"] != "default":
            raise UserError(f"{path}: frontend: {options['frontend']!r} cannot be extracted; only 'default' can")
        options = options.get("frontend_conf") or {}
    if not isinstance(options, dict):
        raise UserError(f"{path}: frontend_conf must be 'key: value' lines; {remedy}")
    return options


def frame_shift(data_dir: str | Path) -> float:
    """Seconds from one frame to the next of a directory of extracted features, from its ``frontend.yaml``.

    Raises:
        UserError: the file is missing or does not tell.
    """
    where = Path(data_dir) / "frontend.yaml"
    remedy = "extract the features again"
    conf: Any = read_yaml(where, remedy).get("frontend_conf")
    try:
        return conf["hop_length"] / conf["fs"]
    except (KeyError, TypeError, ZeroDivisionError):
        raise UserError(f"{where}: does not tell fs and hop_length; {remedy}") from None


@lru_cache(maxsize=1)
def build_frontend(conf: str) -> DefaultFrontend:
    """Builds the frontend once a process; ``conf`` is YAML because a cache needs a hashable key."""
    from espnet2.asr.frontend.default import DefaultFrontend

    options = yaml.safe_load(conf)
    try:
        frontend = DefaultFrontend(**options).eval()
        compute_features(frontend, np.zeros(2 * options["n_fft"], np.float32))  # torch looks at some values only here
        return frontend
    except Exception as error:  # whatever typeguard, librosa or torch say of a wrong value
        raise UserError(f"--frontend_conf: DefaultFrontend refuses these options: {error}") from None


def compute_features(frontend: DefaultFrontend, samples: np.ndarray) -> np.ndarray:
    """Features (frames, bins) float32 of one utterance (T,) float32, computed alone: nothing depends on a batch."""
    import torch

    with torch.inference_mode():
        batch = torch.from_numpy(samples)[None]
        if frontend.stft is None or _enhances(frontend):
            features, lengths = frontend(batch, torch.tensor([len(samples)]))
            return features[0, : int(lengths[0])].numpy()
        # The same two steps without the masks of padding: alone, nothing is padded, and making them takes a third of the time.
        spectrum, _ = frontend.stft(batch)
        features, _ = frontend.logmel(spectrum[..., 0] ** 2 + spectrum[..., 1] ** 2)
        return features[0].numpy()


def _enhances(frontend: DefaultFrontend) -> bool:
    inner = frontend.frontend
    return inner is not None and bool(inner.use_wpe or inner.use_beamformer)


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
    conf = yaml.safe_load(job.frontend)
    frontend = build_frontend(job.frontend)
    for utt_id, clip in job.utterances:
        try:
            samples = _samples_for(conf, clip)
        except UserError as error:
            shard.skips.append(Skip(utt_id, str(error)))
            continue
        features = compute_features(frontend, samples)
        shard.frames[utt_id] = len(features)
        yield utt_id, features


def _samples_for(conf: Mapping[str, Any], clip: Clip) -> np.ndarray:
    samples, rate = read_audio(clip.path, clip.span)
    if rate != conf["fs"]:
        fs = conf["fs"]
        raise UserError(f"{clip.path}: has {rate} Hz, the frontend takes {fs}; run espnet-ee data format --fs {fs}")
    if len(samples) < (conf["n_fft"] // 2 + 1 if conf["center"] else conf["n_fft"]):
        raise UserError(f"{clip.path}: {len(samples)} samples are too short for n_fft {conf['n_fft']}; filter it out")
    return samples
