"""The exit policies by name, and how a ``policy`` / ``policy_conf`` pair becomes an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args, get_origin, get_type_hints

from espnet_ee.errors import UserError
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.cluster_entropy import ClusterEntropyPolicy
from espnet_ee.policy.confidence import ConfidencePolicy
from espnet_ee.policy.decoder import DecoderPolicy, DecoderPosteriorPolicy
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.learned import LearnedPolicy
from espnet_ee.policy.patience import PatiencePolicy
from espnet_ee.policy.posterior import PosteriorPolicy

POLICIES: dict[str, type[ExitPolicy]] = {
    "fixed": FixedExitPolicy,
    "entropy": EntropyPolicy,
    "confidence": ConfidencePolicy,
    "patience": PatiencePolicy,
    "posterior": PosteriorPolicy,
    "learned": LearnedPolicy,
    "cluster_entropy": ClusterEntropyPolicy,
    "decoder": DecoderPolicy,
    "decoder_posterior": DecoderPosteriorPolicy,
}


def build_policy(name: str, conf: Mapping[str, Any]) -> ExitPolicy:
    """Makes the policy ``name`` from its settings.

    Args:
        name: a key of :data:`POLICIES`.
        conf: the policy's fields; numbers may be strings, because YAML reads ``1e-3`` as one and a command line
            knows no other.

    Raises:
        UserError: the name or a key is unknown, a key is missing, or a value has the wrong type.

    >>> build_policy("entropy", {"threshold": "1e-3"})
    EntropyPolicy(threshold=0.001)
    """
    if not isinstance(name, str) or name not in POLICIES:
        raise UserError(f"policy {name!r} is unknown; choose one of: {', '.join(sorted(POLICIES))}")
    if not isinstance(conf, Mapping):
        raise UserError(f"policy {name}: policy_conf must be 'key: value' lines, not {conf!r}")
    policy_class = POLICIES[name]
    known = [field.name for field in fields(policy_class)]  # type: ignore[arg-type]
    required = required_settings(name)
    allowed = f"allowed keys of policy_conf: {', '.join(known) or 'none'}"
    for key in conf:
        if key not in known:
            raise UserError(f"policy {name}: unknown key {key!r}; {allowed}")
    for key in required:
        if key not in conf:
            raise UserError(f"policy {name}: the key {key!r} is missing; {allowed}")
    types = get_type_hints(policy_class)
    return policy_class(**{key: _convert(name, key, value, types[key]) for key, value in conf.items()})


def required_settings(name: str) -> list[str]:
    """The settings that a policy cannot do without."""
    return [field.name for field in fields(POLICIES[name]) if field.default is MISSING]  # type: ignore[arg-type]


def _convert(name: str, key: str, value: Any, wanted: type) -> Any:
    """Returns the value as ``wanted``, or says in one line why it is none."""
    if get_origin(wanted) is Mapping:
        if not isinstance(value, Mapping):
            raise UserError(f"policy {name}: {key} must be a table of numbers, not {value!r}; it comes from a file")
        of_key, of_value = get_args(wanted)
        return {
            _convert(name, f"a key of {key}", word, of_key): _convert(name, f"{key}[{word}]", number, of_value)
            for word, number in value.items()
        }
    # A bool is an int to Python, and int(4.7) is 4: neither is what the user meant.
    fits = isinstance(value, (wanted, str)) or (wanted is float and isinstance(value, int))
    if fits and (wanted is bool) == isinstance(value, bool):
        try:
            return wanted(value)
        except (ValueError, OverflowError):
            pass
    raise UserError(f"policy {name}: {key} must be of type {wanted.__name__}, not {value!r}")
