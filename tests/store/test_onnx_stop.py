"""A policy in a graph decides as the policy itself does, for any frames of any exits."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from espnet_ee.errors import UserError
from espnet_ee.policy.frames import FIELDS, Frames, evidence_of
from espnet_ee.policy.registry import POLICIES, build_policy
from espnet_ee.score.fit import DEFAULT_FEATURES
from espnet_ee.store.onnx_assembly import Assembly
from espnet_ee.store.onnx_stop import RULES, THRESHOLD, stop_rule, threshold_of

LAYERS = (2, 4, 6, 8)
VOCABULARY, BLANK = 5, 0
LEARNED: dict[str, Any] = {
    "weights": dict(zip(DEFAULT_FEATURES, (0.7, 1.5, 0.6, -0.4), strict=True)),
    "intercepts": {2: 0.3, 4: -0.1, 6: -0.5},
    "returns": {2: 0.4, 4: 0.2, 6: 0.0},
}
SETTINGS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "fixed": ({}, (2.0, 4.0, 6.0)),
    "entropy": ({}, (0.0, 0.1, 0.15, 0.2, float("inf"))),
    "confidence": ({}, (0.3, 0.5, 0.6, 0.9)),
    "patience": ({}, (0.0, 1.0, 2.0, 3.0)),
    "learned": (LEARNED, (0.0, 0.02, 0.1, 0.3)),
    **{
        f"learned {name}": ({**LEARNED, "weights": {name: LEARNED["weights"][name]}}, (0.05, 0.2, 0.4))
        for name in DEFAULT_FEATURES
    },
}
FRAMES = ("label", "log_confidence", "entropy")


def policy_of(name: str, threshold: float) -> Any:
    conf, key = SETTINGS[name][0], "exit_layer" if name == "fixed" else "threshold"
    return build_policy(name.split()[0], {**conf, key: int(threshold) if name == "fixed" else threshold})


@functools.cache
def session_of(name: str) -> onnxruntime.InferenceSession:
    """Every exit's decision as an output of one graph."""
    graph, rule = Assembly(), stop_rule(policy_of(name, SETTINGS[name][1][0]), VOCABULARY, BLANK)
    inputs = [
        helper.make_tensor_value_info(THRESHOLD, TensorProto.FLOAT, []),
        helper.make_tensor_value_info("lens", TensorProto.INT64, ["N"]),
    ]
    outputs = []
    for layer in LAYERS[:-1]:
        values = {"lens": "lens", **{frame: f"{frame}{layer}" for frame in FRAMES}}
        graph.node("Identity", [rule.stop(graph, layer, values)], [f"stop{layer}"])
        kinds = (TensorProto.INT64, TensorProto.FLOAT, TensorProto.FLOAT)
        inputs += [
            helper.make_tensor_value_info(values[frame], kind, ["N", "T"]) for frame, kind in zip(FRAMES, kinds, strict=True)
        ]
        outputs.append(helper.make_tensor_value_info(f"stop{layer}", TensorProto.BOOL, ["N"]))
    model = graph.finish(inputs, outputs)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def frames_of(random: np.random.Generator, lens: list[int], repeat: float, broken: float) -> list[dict[str, np.ndarray]]:
    """Frames of every exit but the last (N, T); labels often as at the exit below, evidence sometimes not a number."""
    shape, exits = (len(lens), max(lens) + 2), []
    for _ in LAYERS[:-1]:
        label = random.integers(0, 3, shape)
        if exits:
            same = (
                random.random(shape) < repeat
                if random.random() < 0.5
                else np.repeat(random.random(shape[:1]) < repeat, shape[1])
            )
            label = np.where(np.broadcast_to(same.reshape(shape[0], -1), shape), exits[-1]["label"], label)
        entropy = (random.random(shape) * 1.5).astype(np.float32)
        entropy[random.random(shape[0]) < broken] = np.nan
        confidence = np.log(random.uniform(0.05, 1.0, shape)).astype(np.float32)
        exits.append({"label": label, "log_confidence": confidence, "entropy": entropy})
    return exits


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lens=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    repeat=st.sampled_from((0.0, 0.8, 1.0)),
    broken=st.sampled_from((0.0, 0.3)),
    data=st.data(),
)
def test_a_graph_decides_as_the_policy_does(name: str, seed: int, lens: list[int], repeat: float, broken: float, data) -> None:
    threshold = data.draw(st.sampled_from(SETTINGS[name][1]))
    policy = policy_of(name, threshold)
    assert threshold_of(policy) == threshold
    exits = frames_of(np.random.default_rng(seed), lens, repeat, broken)
    feed = {f"{key}{layer}": value for layer, exit_ in zip(LAYERS, exits, strict=False) for key, value in exit_.items()}
    stops = session_of(name).run(None, {**feed, "lens": np.array(lens), THRESHOLD: np.array(threshold, np.float32)})
    for row, count in enumerate(lens):
        evidence = []
        for place, (layer, exit_) in enumerate(zip(LAYERS, exits, strict=False)):
            label, sure, entropy = (exit_[key][row, :count] for key in FRAMES)
            evidence.append(evidence_of(layer, Frames(label, sure, entropy, VOCABULARY), BLANK, FIELDS))
            level = getattr(policy, "level", lambda _: 0.0)(evidence)
            if name not in ("patience", "fixed") and abs(level - threshold) < 1e-5 * max(1.0, threshold):
                continue  # float32 in the graph
            assert bool(stops[place][row]) == policy.should_stop(evidence), (layer, level)


def test_every_policy_has_a_rule_or_is_refused() -> None:
    for name in set(POLICIES) - set(RULES):
        with pytest.raises(UserError, match=f"policy {name}"):
            stop_rule(
                build_policy(name, {"threshold": 0.5, **({"nbest": 2} if name == "posterior" else {})}), VOCABULARY, BLANK
            )
    assert set(POLICIES) - set(RULES) == {"posterior", "cluster_entropy", "decoder", "decoder_posterior"}
    with pytest.raises(UserError, match="policy learned: a graph cannot"):
        stop_rule(build_policy("learned", {**LEARNED, "threshold": 0.1, "weights": {"decoder_doubt": 1.0}}), VOCABULARY, BLANK)
