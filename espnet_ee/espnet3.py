"""For espnet3 (ESPnet 202611): what its ``infer`` stage calls in place of stock ``Speech2Text``.

Training needs nothing of this: ``task: espnet_ee.plugin.task.EarlyExitASRTask``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from espnet3.systems.esp2_asr.inference import ASRInferenceRunner

from espnet_ee.api import EarlyExitASR
from espnet_ee.decode.recognition import Recognition
from espnet_ee.policy.registry import build_policy

# As of ``Speech2Text``: text, tokens, their numbers, and what more is known of the hypothesis.
Hypothesis = tuple[str, list[str], list[int], Recognition]


class EarlyExitSpeech2Text:
    """Recognises with a policy that stops every utterance, under the interface of ESPnet's ``Speech2Text``.

    Args:
        asr_train_config: ``config.yaml`` of the training.
        asr_model_file: its parameters (``valid.loss.ave_3best.pth`` or one of Lightning's ``.ckpt``).
        policy: name of the exit policy; None: every utterance is computed to the last exit.
        policy_conf: the policy's settings.
        device: torch device; espnet3 gives it.

    Raises:
        UserError: a file is missing or does not fit, or the policy does not.
    """

    def __init__(
        self,
        asr_train_config: str | Path,
        asr_model_file: str | Path,
        policy: str | None = None,
        policy_conf: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        chosen = None if policy is None else build_policy(policy, dict(policy_conf or {}))
        self.asr = EarlyExitASR.from_files(asr_train_config, asr_model_file, chosen, device)
        self.sample_rate = self.asr.sample_rate  # espnet3 resamples to it

    def __call__(self, speech: np.ndarray | Sequence[np.ndarray]) -> list:
        """The hypotheses of one utterance (N,), best (and only) first; for a list of utterances, a list of those."""
        if isinstance(speech, (list, tuple)):
            return [[_hypothesis(result)] for result in self.asr.recognise(speech)]
        return [_hypothesis(self.asr.recognise([cast(np.ndarray, speech)])[0])]


def _hypothesis(result: Recognition) -> Hypothesis:
    return result.text, list(result.tokens), list(result.token_ids), result


class EarlyExitInferenceRunner(ASRInferenceRunner):
    """Writes ``exit_layer.scp`` and ``macs.scp`` beside ``text.scp``; stock ``ASRInferenceRunner`` writes the text alone."""

    @staticmethod
    def format_output(result: list, *, batched: bool) -> Any:
        """Named outputs of one call of :class:`EarlyExitSpeech2Text`: of an utterance, or a list of them for a batch."""
        if batched:
            return [EarlyExitInferenceRunner.format_output(hypotheses, batched=False) for hypotheses in result]
        recognition = result[0][3]
        return {"text": recognition.text, "exit_layer": recognition.exit_layer, "macs": recognition.macs}
