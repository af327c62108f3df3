"""The decoding configuration: the YAML that users hold, calibration writes and packages carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import parse_yaml, read_yaml
from espnet_ee.policy.attending import ATTENTION, Search, read_search
from espnet_ee.policy.base import ExitPolicy, ThresholdPolicy
from espnet_ee.policy.confidences import ConfidenceMap
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import build_policy
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.values import is_number, is_whole

KEYS = ("policy", "policy_conf", "search", "batch_size", "num_threads", "confidences", "word_exit", "word_shift")
_REMEDY = "give a decoding configuration, such as calibration writes"


@dataclass(frozen=True)
class DecodingConfig:
    """How to recognise: when to stop, and how many utterances and threads at once.

    Attributes:
        policy: when an utterance stops; None: at the final exit.
        batch_size: utterances recognised together.
        num_threads: CPU threads.
        search: how the text is looked for at the exit where it stops.
        confidences: what the model's own word confidences are worth; without knots they stay as they are.
        word_exit: the exit by whose alignment of the text words get their times (deep CTC layers drift); None, and where an utterance
            stops below it: the one that stopped.
        word_shift: seconds by which words' starts and ends are moved, for a model that says its tokens later (or earlier) than they are
            heard, always by about as much (:mod:`espnet_ee.decode.word_times` measures it).

    Raises:
        UserError: a number or exit is not a whole one from 1 on, or a shift none of less than a second; or policy or search are
            something else.

    >>> DecodingConfig.from_mapping({"policy": "entropy", "policy_conf": {"threshold": 0.01}}, "decode.yaml").policy
    EntropyPolicy(threshold=0.01)
    """

    policy: ExitPolicy | None = None
    batch_size: int = 1
    num_threads: int = 1
    search: Search = field(default_factory=SearchConfig)
    confidences: ConfidenceMap = field(default_factory=ConfidenceMap)
    word_exit: int | None = None
    word_shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for key, kinds in (("policy", ExitPolicy | None), ("search", Search)):
            if not isinstance(getattr(self, key), kinds):
                raise UserError(f"{key} is {getattr(self, key)!r}; give an object, or a file's by DecodingConfig.read")
        for key in ("batch_size", "num_threads", *(["word_exit"] if self.word_exit is not None else [])):
            if not is_whole(getattr(self, key)):
                raise UserError(f"{key} is {getattr(self, key)!r}; give a whole number from 1 on")
        if len(self.word_shift) != 2 or not all(is_number(value) and abs(value) < 1 for value in self.word_shift):
            raise UserError(
                f"word_shift is {self.word_shift!r}; give two numbers, seconds for starts and for ends: [-0.12, -0.1]"
            )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str) -> DecodingConfig:
        """Reads the keys of a decoding configuration; a key without a value counts as not there.

        Args:
            mapping: what the YAML holds.
            where: what an error's line begins with, such as the file's name.

        Raises:
            UserError: a key is unknown, or a value is of the wrong kind; file and key are named.
        """
        for key in mapping:
            if key not in KEYS:
                raise UserError(f"{where}: unknown key {key!r}; known keys are {', '.join(KEYS)}")
        values = {key: value for key, value in mapping.items() if value is not None}
        name, conf = values.pop("policy", None), values.pop("policy_conf", {})
        try:
            if "search" in values:
                values["search"] = read_search(values["search"])
            if "confidences" in values:
                values["confidences"] = ConfidenceMap.from_mapping(values["confidences"])
            if "word_shift" in values:
                shift = values["word_shift"]
                values["word_shift"] = tuple(shift) if isinstance(shift, list | tuple) else (shift,)
            return cls(_policy(name, conf), **values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    @classmethod
    def read(cls, path: str | Path) -> DecodingConfig:
        """Reads a YAML file; an empty one is the final exit's; a language model's path starts from its folder. See
        :meth:`from_mapping`.

        Raises:
            UserError: as there, or the threshold is none that the policy can have; infinity is always or never.
        """
        config = cls.from_mapping(read_yaml(path, _REMEDY, allow_empty=True), str(path))
        if isinstance(config.policy, ThresholdPolicy) and math.isfinite(config.policy.threshold):
            try:
                config.policy.check_threshold()
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        return replace(config, search=config.search.beside(Path(path).parent))

    def to_mapping(self) -> dict[str, Any]:
        """What :meth:`from_mapping` reads back: plain numbers, words and tables."""
        conf = {} if self.policy is None else asdict(self.policy)  # type: ignore[call-overload]
        name = FixedExitPolicy.name if self.policy is None else self.policy.name
        search = {} if self.search == SearchConfig() else {"search": self.search.to_mapping()}
        numbers = {"batch_size": self.batch_size, "num_threads": self.num_threads}
        confidences = {"confidences": self.confidences.to_mapping()} if self.confidences.knots else {}
        words: dict[str, Any] = {} if self.word_exit is None else {"word_exit": self.word_exit}
        words |= {"word_shift": list(self.word_shift)} if any(self.word_shift) else {}
        return {"policy": name, "policy_conf": conf, **search, **numbers, **confidences, **words}

    def to_yaml(self) -> str:
        """As the file that users hold."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)

    def changed(
        self, policy: str | None = None, settings: Mapping[str, Any] | None = None, **numbers: int | None
    ) -> DecodingConfig:
        """The configuration with what a command line says.

        Args:
            policy: another policy, which begins without settings.
            settings: of the policy, in place of those of the same name.
            numbers: ``batch_size`` and ``num_threads``; None leaves them.

        Raises:
            UsageError: as :meth:`from_mapping`, or the threshold is none that the policy can have.
        """
        mapping = self.to_mapping()
        if policy is not None:
            mapping.update(policy=policy, policy_conf={})
        mapping["policy_conf"] = {**mapping["policy_conf"], **(settings or {})}
        mapping.update({key: value for key, value in numbers.items() if value is not None})
        try:
            changed = self.from_mapping(mapping, "command line")
            if isinstance(changed.policy, ThresholdPolicy) and "threshold" in (settings or {}):
                changed.policy.check_threshold()
            return changed
        except UserError as error:
            raise UsageError(str(error)) from None

    def policy_for(self, exit_layers: Sequence[int]) -> ExitPolicy:
        """The policy, checked against a model's exits, rising; that of the final exit where there is none.

        Raises:
            UserError: the policy or ``word_exit`` does not fit them, or the policy reads what the search does not say.
        """
        if self.word_exit is not None and self.word_exit not in exit_layers:
            raise UserError(f"word_exit is {self.word_exit}; the model's exits are {', '.join(map(str, exit_layers))}")
        policy = FixedExitPolicy(exit_layers[-1]) if self.policy is None else self.policy
        policy.check(exit_layers)
        if policy.needs_every_search and self.search.kind != ATTENTION:
            raise UserError(
                f"policy {policy.name} reads what an attention decoder says; give the table search: with kind: {ATTENTION}"
            )
        return policy


def _policy(name: Any, conf: Any) -> ExitPolicy | None:
    if name is None and conf:
        raise UserError("policy_conf without a policy; name the policy")
    if name is None or (name == FixedExitPolicy.name and conf == {}):
        return None
    return build_policy(name, conf)


def pairs(words: list[str], option: str) -> dict[str, str]:
    """Reads ``KEY=VALUE`` words.

    >>> pairs(["threshold=0.1"], "--policy_conf")
    {'threshold': '0.1'}

    Raises:
        UsageError: a word is something else.
    """
    table = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise UsageError(f"{option}: {word!r} is not KEY=VALUE")
        table[key] = value
    return table


def values(words: list[str], option: str) -> dict[str, Any]:
    """Reads ``KEY=VALUE`` words whose values are what YAML takes them for. Raises UsageError as :func:`pairs`, or if one is no YAML.

    >>> values(["beam=4"], "--search")
    {'beam': 4}
    """
    try:
        return {key: parse_yaml(value) for key, value in pairs(words, option).items()}
    except yaml.YAMLError as error:
        raise UsageError(f"{option}: {error}") from None


def search_of_words(words: list[str], option: str) -> Search:
    """Reads ``KEY=VALUE`` words of a command line. Raises UsageError as :func:`values` and :func:`read_search`.

    >>> search_of_words(["kind=attention", "beam=4"], "--search")
    AttentionConfig(beam=4, ctc_weight=0.3, maxlenratio=0.0)
    """
    settings = values(words, option)
    try:
        return read_search(settings)
    except UserError as error:
        raise UsageError(f"{option}: {error}") from None
