"""Stage 12, which selects exits: the evidence of every set, calibration on one of them, the calibrated policies online.

All in one process, which loads the model once, and only if anything is left to decode.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from espnet_ee.data.inputs import content_digest, read_inputs
from espnet_ee.data.word_times import WORD_TIMES, TimedWords, read_word_times
from espnet_ee.decode.journal import Journal, open_journal
from espnet_ee.decode.results import SUMMARY, Decoding, check_output_dir, decode, write_decoding
from espnet_ee.decode.session import ExitSession
from espnet_ee.decode.tuning import CONFIG, FACTS, FOLDER, Stops, Tuning, check_grid, tune, write_tuned
from espnet_ee.decode.word_times import TIMES, WORD_KEYS, facts_of, measure
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import file_digest, files_digest, is_file, read_yaml, refuse_other_folder, write_yaml
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.attending import Search
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.score.calibrate import DEFAULT_POLICIES, DEFAULT_TARGETS, calibrate_policies, parse_target, write_calibrated
from espnet_ee.score.experiment import EVERY_EXIT, POLICIES
from espnet_ee.score.fit import DEFAULT_FEATURES
from espnet_ee.score.grid import read_grid
from espnet_ee.score.kept import FAILED
from espnet_ee.search.arpa import read_words


@dataclass(frozen=True)
class Calibration:
    """What is calibrated, and what of it runs online.

    Attributes:
        on: name of the development set.
        policies: names.
        targets: as :func:`espnet_ee.score.calibrate.parse_target` reads them.
        features: what the learned policy reads.
        online: names of the policies whose calibrated configurations run online on every set.

    Raises:
        UsageError: a target is none, or a policy would run online that is not calibrated.
    """

    on: str
    policies: Sequence[str] = DEFAULT_POLICIES
    targets: Sequence[str] = DEFAULT_TARGETS
    features: Sequence[str] = DEFAULT_FEATURES
    online: Sequence[str] = ("learned",)

    def __post_init__(self) -> None:
        for word in self.targets:
            parse_target(word)
        missing = set(self.online) - set(self.policies)
        if missing:
            raise UsageError(f"--online {' '.join(sorted(missing))}: is not among the policies that are calibrated")


@dataclass(frozen=True)
class DecodeOptions:
    """What to decode, and how.

    Attributes:
        out: folder of all decodings; each is written into OUT/TAG/SET.
        data: data directories; a set's name is that of its folder.
        model_files: configuration and parameters: a decoding of the same bytes is not done again.
        configs: decoding configurations by tag.
        every_exit: whether the evidence of every exit is written, too (as ``decode_every_exit``).
        nbest: with every exit: size of an N-best list at each; 0: none.
        batch_size: utterances recognised together; None: as a configuration says, or 1.
        num_threads: CPU threads, likewise.
        device: torch device.
        chunk_ms: milliseconds of a chunk beyond which a frame sees nothing, as in a stream; None: it sees all.
        search: how the text of an exit is looked for in the evidence, and by what is calibrated on it.
        calibration: what is calibrated on the evidence; None: nothing.
        tuning: of a calibration: a language model, whose weight is tuned on the development set; the evidence and what is
            calibrated on it are then of the beam search with it. None: they are greedy.
    """

    out: Path
    data: Sequence[Path]
    model_files: Sequence[Path]
    configs: Mapping[str, DecodingConfig] = field(default_factory=dict)
    every_exit: bool = False
    nbest: int = 0
    batch_size: int | None = None
    num_threads: int | None = None
    device: str = "cpu"
    chunk_ms: int | None = None
    search: Search = field(default_factory=SearchConfig)
    calibration: Calibration | None = None
    tuning: Tuning | None = None


@dataclass(frozen=True)
class LoadedModel:
    """An engine with what a decoding has to know of it.

    Attributes:
        session: the engine.
        sample_rate: of the audio it takes, in Hz.
        facts: for ``decode.yaml``: where it came from, its size, versions.
    """

    session: ExitSession[Any]
    sample_rate: int
    facts: Mapping[str, Any]


def decode_sets(options: DecodeOptions, load: Callable[[], LoadedModel]) -> None:
    """Decodes every set with every configuration; what is there already, of the same model, data and settings, stays.

    Args:
        options: what to decode.
        load: loads the model; called when something is to be decoded, and once.

    Raises:
        UserError: an input is missing or broken, or an output folder is something else; before anything is decoded. An
            utterance that cannot be decoded is listed in the decoding's ``failed`` and named in a warning.
    """
    run = _Decodings(options, load)
    run.check()
    search = run.search()
    if options.every_exit or options.calibration:
        run.decode(EVERY_EXIT, DecodingConfig(search=search), every_exit=True)
    for tag, config in options.configs.items():
        run.decode(tag, config)
    if options.calibration:
        for tag, config in run.calibrate(options.calibration, search):
            run.decode(tag, config)


class _Decodings:
    """All decodings of one call."""

    def __init__(self, options: DecodeOptions, load: Callable[[], LoadedModel]) -> None:
        self.options, self._load = options, load
        self.sets = {path.resolve().name: path for path in options.data}
        self.known_times: TimedWords | None = None  # of the words of the set that is calibrated on

    @cached_property
    def model(self) -> LoadedModel:
        """The model, loaded when it is first needed."""
        return self._load()

    @cached_property
    def model_digest(self) -> str:
        """What the model's files hold."""
        return files_digest(self.options.model_files)

    @cached_property
    def digests(self) -> dict[str, str]:
        """What each set holds."""
        return {name: content_digest(path) for name, path in self.sets.items()}

    def check(self) -> None:
        """Finds mistakes and folders that cannot be written before hours are spent."""
        options, calibration = self.options, self.options.calibration
        if len(self.sets) < len(options.data) or not self.sets:
            raise UsageError("--data: name at least one data directory, each folder's name once: it is the set's name")
        if options.nbest == 1 or options.nbest < 0:
            raise UsageError(f"--nbest {options.nbest}: give 2 or more, or 0 for none")
        if options.nbest and not (options.every_exit or calibration):
            raise UsageError(
                f"--nbest {options.nbest}: is for --every_exit or --calibrate_on; a policy says itself what it needs"
            )
        if EVERY_EXIT in options.configs:
            raise UsageError(f"{EVERY_EXIT} is the evidence's name; rename the configuration")
        if calibration:
            self._check_calibration(calibration)
        if options.tuning:
            if calibration is None:
                raise UsageError("--lm: is tuned on the development set; name it with --calibrate_on")
            if options.search != SearchConfig():
                raise UsageError("--search: has no place beside --lm, which is tuned for a beam; leave out one of them")
            check_grid(options.tuning)
            read_words(options.tuning.lm)
            refuse_other_folder(options.out / FOLDER, (FACTS,))
        tags = [*options.configs, *([EVERY_EXIT] if options.every_exit or calibration else [])]
        for folder in (options.out / tag / name for tag in tags for name in self.sets):
            check_output_dir(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
        assert self.digests and self.model_digest  # every file is there and can be read

    def _check_calibration(self, calibration: Calibration) -> None:
        if calibration.on not in self.sets:
            raise UsageError(f"--calibrate_on {calibration.on}: none of the sets; they are {', '.join(self.sets)}")
        if not (self.sets[calibration.on] / "text").is_file():
            raise UserError(f"{self.sets[calibration.on] / 'text'}: no such file; calibration needs the set's references")
        table = self.sets[calibration.on] / WORD_TIMES
        self.known_times = read_word_times(table) if is_file(table) else None

    def search(self) -> Search:
        """How the texts of every exit and of what is calibrated are looked for; tunes the language model, if there is one."""
        tuning, calibration = self.options.tuning, self.options.calibration
        if tuning is None or calibration is None:
            return self.options.search
        folder, data = self.options.out / FOLDER, self.sets[calibration.on]
        policy = next(iter([*calibration.online, *calibration.policies]), None) if calibration.targets else None
        stops = Stops(policy, calibration.targets[0] if policy else "", tuple(calibration.features))
        identity = {
            "lm_digest": file_digest(tuning.lm),
            "model_digest": self.model_digest,
            "data_digest": self.digests[calibration.on],
            "text_digest": file_digest(data / "text"),
            "chunk_ms": self.options.chunk_ms,
            "beam": tuning.beam,
            "lm_weights": list(tuning.lm_weights),
            "insertions": list(tuning.insertions),
            "stops": [stops.policy, stops.target, *stops.features],
        }
        if not _holds(folder / FACTS, identity):
            print(f"{folder}: weight of {tuning.lm} on {calibration.on}", file=sys.stderr, flush=True)
            inputs, references = read_inputs(data, self.model.sample_rate), read_scp(data / "text", allow_empty=True)
            self.model.session.use_threads(self.options.num_threads or 1)
            write_tuned(folder, tuning, tune(self.model.session, tuning, inputs, references, stops), identity)
        search = DecodingConfig.read(folder / CONFIG).search
        print(f"{folder / CONFIG}: {search}", flush=True)
        return search

    def decode(self, tag: str, config: DecodingConfig, every_exit: bool = False) -> None:
        """Decodes all sets with one configuration."""
        numbers: dict[str, Any] = {"batch_size": self.options.batch_size, "num_threads": self.options.num_threads}
        config = replace(config, **{key: value for key, value in numbers.items() if value is not None})
        config = replace(config, word_exit=None, word_shift=(0.0, 0.0))  # no times of words are written, so none are made
        nbest = self.options.nbest if every_exit else 0
        for name in self.sets:
            folder = self.options.out / tag / name
            identity = {
                **config.to_mapping(),
                **{f"{key}_digest": file_digest(path) for key, path in config.search.files.items()},
                "every_exit": every_exit,
                "nbest": nbest,
                "device": self.options.device,
                "chunk_ms": self.options.chunk_ms,
                "model_digest": self.model_digest,
                "data_digest": self.digests[name],
            }
            if _holds(folder / SUMMARY, identity):
                print(f"{folder}: done before", flush=True)
                continue
            with open_journal(folder, identity) as journal:
                decoding = self._decode(tag, name, config, every_exit, journal)
                write_decoding(folder, decoding, {**identity, **self.model.facts}, every_exit)
            print(f"{folder}: {len(decoding.results)} utterances, RTF {decoding.rtf:.4f}", flush=True)
            _warn_of_failures(folder, decoding)

    def _decode(self, tag: str, name: str, config: DecodingConfig, every_exit: bool, journal: Journal) -> Decoding:
        data, nbest = self.sets[name], self.options.nbest if every_exit else 0
        inputs = read_inputs(data, self.model.sample_rate)
        if journal.results:
            print(
                f"{tag}/{name}: goes on after {len(journal.results)} of {len(inputs)} utterances", file=sys.stderr, flush=True
            )
        try:
            return decode(
                self.model.session, config, inputs, every_exit, nbest, partial(_say_progress, f"{tag}/{name}"), journal
            )
        except UserError as error:
            raise UserError(f"{data}: {error}") from None

    def calibrate(self, calibration: Calibration, search: Search) -> Iterator[tuple[str, DecodingConfig]]:
        """Writes the calibrated configurations; yields those that run online, by tag."""
        out, folder = self.options.out, self.options.out / POLICIES
        evidence = out / EVERY_EXIT / calibration.on / "evidence.tsv"
        dev = read_grid(evidence, self.sets[calibration.on] / "text", calibration.on, keep=True)
        targets = []
        for word in calibration.targets:
            target = parse_target(word)
            # An hour of decoding is not to end in an error: a recipe names targets before there is a model.
            if why := target.beyond(dev):
                print(f"warning: target {word} is left out: {why}", file=sys.stderr, flush=True)
            else:
                targets.append(target)
        before, common = set(folder.glob("decode_*.yaml")), replace(self.word_times(calibration.on), search=search)
        calibrated = calibrate_policies(dev, calibration.policies, targets, calibration.features)
        write_calibrated(folder, calibrated, calibration.on, common)
        for path in before - set(folder.glob("decode_*.yaml")):
            self._remove(out / path.stem)  # what ran online by an earlier calibration is none of this one's
        for one in calibrated:
            print(one, flush=True)
            if one.policy.name in calibration.online:
                yield f"decode_{one.name}", one.config_in(common)

    def word_times(self, name: str) -> DecodingConfig:
        """Where words get their times from, as a decoding configuration, where a set knows when they are said; measured once."""
        data, path = self.sets[name], self.options.out / TIMES
        if self.known_times is None:
            return DecodingConfig()
        identity = {
            "word_times_digest": files_digest([data / WORD_TIMES, data / "text"]),
            "model_digest": self.model_digest,
            "data_digest": self.digests[name],
            "chunk_ms": self.options.chunk_ms,
        }
        if not _holds(path, identity):
            print(f"{path}: when words are said, on {name}", file=sys.stderr, flush=True)
            inputs, texts = read_inputs(data, self.model.sample_rate), read_scp(data / "text", allow_empty=True)
            try:
                measured = measure(self.model.session, inputs, texts, self.known_times)
            except UserError as error:
                print(f"warning: {data / WORD_TIMES}: words' times stay as they are: {error}", file=sys.stderr, flush=True)
                return DecodingConfig()
            write_yaml(path, {**facts_of(measured), **identity})
        facts = read_yaml(path, "delete it to make it again")
        found = {key: facts[key] for key in WORD_KEYS if key in facts}
        print(f"{path}: {found}", flush=True)
        return DecodingConfig.from_mapping(found, str(path))

    def _remove(self, folder: Path) -> None:
        for name in self.sets:
            if (folder / name / SUMMARY).is_file():
                shutil.rmtree(folder / name)


def _holds(path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether what a folder's own file says of it is this."""
    if not path.is_file():
        return False
    facts = read_yaml(path, "delete the folder to make it again")
    return all(facts.get(key) == value for key, value in identity.items())


def _warn_of_failures(folder: Path, decoding: Decoding) -> None:
    if decoding.failed:
        count, total = len(decoding.failed), len(decoding.failed) + len(decoding.results)
        first, reason = next(iter(decoding.failed.items()))
        print(
            f"warning: {folder}: {count} of {total} utterances could not be decoded, see {folder / FAILED}; {first}: {reason}; "
            "delete the folder to try again",
            file=sys.stderr,
            flush=True,
        )


def _say_progress(name: str, done: int, total: int) -> None:
    """Says on stderr, ten times a set, how far it is."""
    if done == total or done % max(1, total // 10) == 0:
        print(f"{name}: {done}/{total}", file=sys.stderr, flush=True)
