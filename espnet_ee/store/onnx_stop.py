"""Exit policies as ONNX: what decides, at one exit, which utterances of a batch stop.

The pieces are written in ONNX's own notation. ``threshold`` is a value from outside, so that it can be changed in a file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from espnet_ee.errors import UserError
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.confidence import ConfidencePolicy
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.learned import MOST, LearnedPolicy
from espnet_ee.policy.patience import PatiencePolicy
from espnet_ee.store.onnx_assembly import Assembly, Names, piece

THRESHOLD = "threshold"
P = TypeVar("P", bound=ExitPolicy)

_REAL = """real (int64[N, T] label, int64[N] lens) => (bool[N, T] real, float[N] count) {
    axis = Constant<value_ints=[1]>()  zero = Constant<value_int=0>()  one = Constant<value_int=1>()
    shape = Shape<start=1, end=2>(label)  length = Squeeze(shape)
    places = Range(zero, length, one)  ends = Unsqueeze(lens, axis)
    real = Less(places, ends)  count = Cast<to=1>(lens)
}"""
_ENTROPY = """entropy (float[N, T] entropy, bool[N, T] real, float[N] count, float vocabulary) => (float[N] level, bool[N] known) {
    axis = Constant<value_ints=[1]>()  zero = Constant<value_float=0.0>()
    each = Where(real, entropy, zero)  sum = ReduceSum<keepdims=0>(each, axis)
    all = Mul(count, vocabulary)  mean = Div(sum, all)
    below = Less(mean, zero)  level = Where(below, zero, mean)
    nan = IsNaN(level)  infinite = IsInf(level)  broken = Or(nan, infinite)  known = Not(broken)
}"""
_CONFIDENCE = """confidence (int64[N, T] label, float[N, T] log_confidence, bool[N, T] real, float[N] count, int64 blank)
    => (float[N] spoken_confidence, float[N] confidence) {
    axis = Constant<value_ints=[1]>()  zero = Constant<value_float=0.0>()
    probability = Exp(log_confidence)  silent = Equal(label, blank)  speaks = Not(silent)  spoken = And(speaks, real)
    each = Where(spoken, probability, zero)  sum = ReduceSum<keepdims=0>(each, axis)
    ones = Cast<to=1>(spoken)  spoken_count = ReduceSum<keepdims=0>(ones, axis)
    spoken_confidence = Div(sum, spoken_count)
    every = Where(real, probability, zero)  whole = ReduceSum<keepdims=0>(every, axis)  confidence = Div(whole, count)
}"""
_TOKENS = """tokens (int64[N, T] label, bool[N, T] real, int64 blank)
    => (int64[N, T] tokens, int64[N] number, int64[N, T] run, bool[N, T] spoken) {
    axis = Constant<value_ints=[1]>()  at_axis = Constant<value_int=1>()  one = Constant<value_int=1>()  none = Constant<value_int=-1>()
    begin = Constant<value_ints=[0]>()  end = Constant<value_ints=[-1]>()
    before = Constant<value_ints=[0, 1, 0, 0]>()  behind = Constant<value_ints=[0, 0, 0, 1]>()
    cut = Slice(label, begin, end, axis)  previous = Pad(cut, before, none)
    same = Equal(label, previous)  new = Not(same)  starts = And(new, real)
    silent = Equal(label, blank)  speaks = Not(silent)  spoken = And(starts, speaks)
    start = Cast<to=7>(starts)  runs = CumSum(start, at_axis)  run = Sub(runs, one)
    each = Cast<to=7>(spoken)  places = CumSum(each, at_axis)  place = Sub(places, one)
    number = ReduceSum<keepdims=0>(each, axis)
    shape = Shape<start=1, end=2>(label)  length = Squeeze(shape)  where = Where(spoken, place, length)
    size = Shape(label)  empty = Expand(none, size)  table = Pad(empty, behind, none)
    filled = ScatterElements<axis=1>(table, where, label)
    tokens = Slice(filled, begin, end, axis)
}"""
_DOUBT = """doubt (float[N, T] log_confidence, float[N] confidence, bool[N, T] real, int64[N, T] run, bool[N, T] spoken)
    => (float[N] doubt) {
    axis = Constant<value_ints=[1]>()  zero = Constant<value_float=0.0>()  one = Constant<value_float=1.0>()
    first = Constant<value_int=0>()  place = Max(run, first)
    probability = Exp(log_confidence)  each = Where(real, probability, zero)
    size = Shape(run)  empty = Expand(zero, size)
    surest = ScatterElements<axis=1, reduction="max">(empty, place, each)
    mark = Cast<to=1>(spoken)  marks = ScatterElements<axis=1, reduction="max">(empty, place, mark)
    token = Greater(marks, zero)  sure = Where(token, surest, one)  least = ReduceMin<keepdims=0>(sure, axis)
    any = ReduceMax<keepdims=0>(marks, axis)  spoke = Greater(any, zero)
    certainty = Where(spoke, least, confidence)  doubt = Sub(one, certainty)
}"""
_EQUAL = """equal (int64[N, T] a, int64[N, T] b) => (float[N] equal) {
    axis = Constant<value_ints=[1]>()
    same = Equal(a, b)  each = Cast<to=1>(same)  equal = ReduceMin<keepdims=0>(each, axis)
}"""
_CHANGED = """changed (int64[N, T] a, int64[N] a_number, int64[N, T] b, int64[N] b_number) => (float[N] changed) {
    axis = Constant<value_ints=[1]>()  at_axis = Constant<value_int=1>()  zero = Constant<value_int=0>()  one = Constant<value_int=1>()
    shorter = Min(a_number, b_number)  longer = Max(a_number, b_number)
    same = Equal(a, b)  other = Not(same)  others = Cast<to=7>(other)  passed = CumSum(others, at_axis)
    within = Equal(passed, zero)  equals = Cast<to=7>(within)  leading = ReduceSum<keepdims=0>(equals, axis)
    head = Min(leading, shorter)
    shape = Shape<start=1, end=2>(a)  length = Squeeze(shape)  back = Range(zero, length, one)
    a_last = Sub(a_number, one)  a_end = Unsqueeze(a_last, axis)  a_back = Sub(a_end, back)  a_place = Max(a_back, zero)
    b_last = Sub(b_number, one)  b_end = Unsqueeze(b_last, axis)  b_back = Sub(b_end, back)  b_place = Max(b_back, zero)
    a_turned = GatherElements<axis=1>(a, a_place)  b_turned = GatherElements<axis=1>(b, b_place)
    same_back = Equal(a_turned, b_turned)  other_back = Not(same_back)  others_back = Cast<to=7>(other_back)
    passed_back = CumSum(others_back, at_axis)  within_back = Equal(passed_back, zero)  equals_back = Cast<to=7>(within_back)
    trailing = ReduceSum<keepdims=0>(equals_back, axis)
    rest = Sub(shorter, head)  tail = Min(trailing, rest)
    stretch = Sub(longer, head)  between = Sub(stretch, tail)
    per = Max(b_number, one)  between_float = Cast<to=1>(between)  per_float = Cast<to=1>(per)
    changed = Div(between_float, per_float)
}"""


class StopRule(ABC, Generic[P]):
    """A policy's decision in a graph, exit after exit.

    Args:
        policy: whose settings it takes; its threshold comes from outside.
        vocabulary: number of tokens.
        blank: blank id.
    """

    def __init__(self, policy: P, vocabulary: int, blank: int) -> None:
        self.policy = policy
        self.numbers = {"vocabulary": float(vocabulary), "blank": blank}

    @abstractmethod
    def stop(self, graph: Assembly, layer: int, exit_: Names) -> str:
        """Places the decision at one exit.

        Args:
            graph: where.
            layer: the exit's; exits are asked in their order.
            exit_: names of ``label``, ``log_confidence``, ``entropy`` (N, T) and ``lens`` (N,).

        Returns:
            The name of (N,), true where an utterance may stop.
        """

    def measure(self, graph: Assembly, exit_: Names, *pieces: str) -> Names:
        """Places pieces, each on what the exit and the ones before it give; numbers that a piece names are written out."""
        values = dict(exit_)
        for text in (_REAL, *pieces):
            model = piece(text)
            names = [value.name for value in model.graph.input]
            for name in set(names) & set(self.numbers) - set(values):
                values[name] = self.number(graph, self.numbers[name])
            placed = graph.place(model, {name: values[name] for name in names})
            values.update({value.name: placed[value.name] for value in model.graph.output})
        return values

    def number(self, graph: Assembly, value: float) -> str:
        """Places a number."""
        kind = "int" if isinstance(value, int) else "float"
        text = f"number () => ({'int64' if kind == 'int' else kind} n) {{ n = Constant<value_{kind}={value!r}>() }}"
        return graph.place(piece(text), {})["n"]

    def combine(self, graph: Assembly, text: str, **values: str) -> str:
        """Places a formula of floats (N,) whose result is called ``result``."""
        inputs = ", ".join(f"float[N] {name}" for name in values)
        return graph.place(piece(f"formula ({inputs}) => (float[N] result) {{ {text} }}"), values)["result"]


class FixedRule(StopRule[FixedExitPolicy]):
    """Of ``fixed``: the threshold is the exit layer."""

    def stop(self, graph: Assembly, layer: int, exit_: Names) -> str:
        text = "here = GreaterOrEqual(layer, threshold)  size = Shape(lens)  result = Expand(here, size)"
        return self.combine(graph, text, layer=self.number(graph, float(layer)), threshold=THRESHOLD, lens=exit_["lens"])


class EntropyRule(StopRule[EntropyPolicy]):
    """Of ``entropy``."""

    def stop(self, graph: Assembly, layer: int, exit_: Names) -> str:
        level = self.measure(graph, exit_, _ENTROPY)["level"]
        return self.combine(graph, "result = Less(level, threshold)", level=level, threshold=THRESHOLD)


class ConfidenceRule(StopRule[ConfidencePolicy]):
    """Of ``confidence``: of an exit that spoke nothing it is 0/0, which is above no threshold."""

    def stop(self, graph: Assembly, layer: int, exit_: Names) -> str:
        level = self.measure(graph, exit_, _CONFIDENCE)["spoken_confidence"]
        return self.combine(graph, "result = Greater(level, threshold)", level=level, threshold=THRESHOLD)


class PatienceRule(StopRule[PatiencePolicy]):
    """Of ``patience``: how many exits agree, the current one counted; 0 where it is broken."""

    before: Names | None = None

    def stop(self, graph: Assembly, layer: int, exit_: Names) -> str:
        values = self.measure(graph, exit_, _ENTROPY, _TOKENS)
        agreeing = self.combine(graph, "result = Cast<to=1>(known)", known=values["known"])
        if self.before is not None:
            equal = graph.place(piece(_EQUAL), {"a": self.before["tokens"], "b": values["tokens"]})["equal"]
            text = "more = Mul(equal, before)  all = Mul(more, known)  result = Add(all, known)"
            agreeing = self.combine(graph, text, equal=equal, before=self.before["agreeing"], known=agreeing)
        self.before = {**values, "agreeing": agreeing}
        text = """zero = Constant<value_float=0.0>()  some = Greater(agreeing, zero)
            enough = GreaterOrEqual(agreeing, threshold)  result = And(some, enough)"""
        return self.combine(graph, text, agreeing=agreeing, threshold=THRESHOLD)


class LearnedRule(StopRule[LearnedPolicy]):
    """Of ``learned``: its features, as in :data:`espnet_ee.policy.features.FEATURES`, are methods of the same names."""

    def __init__(self, policy: LearnedPolicy, vocabulary: int, blank: int) -> None:
        super().__init__(policy, vocabulary, blank)
        self.passed: list[Names] = []

    def stop(self, graph: Assembly, layer: int, exit_: Names) -> str:
        values = self.measure(graph, exit_, _ENTROPY, _CONFIDENCE, _TOKENS, _DOUBT)
        if self.passed:
            least = "result = Min(before, now)"
            values["doubt"] = self.combine(graph, least, before=self.passed[-1]["doubt"], now=values["doubt"])
        total = self.number(graph, float(self.policy.intercepts[layer]))
        for name, weight in self.policy.weights.items():
            text = f"weight = Constant<value_float={weight!r}>()  part = Mul(feature, weight)  result = Add(total, part)"
            total = self.combine(graph, text, total=total, feature=getattr(self, name)(graph, values))
        self.passed.append(values)
        text = f"""most = Constant<value_float={MOST!r}>()  returns = Constant<value_float={float(self.policy.returns[layer])!r}>()
            bounded = Min(total, most)  errors = Exp(bounded)  level = Mul(errors, returns)
            nan = IsNaN(total)  infinite = IsInf(total)  broken = Or(nan, infinite)  whole = Not(broken)
            sure = And(whole, known)  enough = LessOrEqual(level, threshold)  result = And(sure, enough)"""
        return self.combine(graph, text, total=total, known=values["known"], threshold=THRESHOLD)

    def log_entropy(self, graph: Assembly, values: Names) -> str:
        text = "floor = Constant<value_float=1e-06>()  more = Add(level, floor)  result = Log(more)"
        return self.combine(graph, text, level=values["level"])

    def least_token_doubt(self, graph: Assembly, values: Names) -> str:
        return values["doubt"]

    def changed_tokens(self, graph: Assembly, values: Names) -> str:
        if not self.passed:
            return self.number(graph, 0.0)
        before = self.passed[-1]
        inputs = {"a": before["tokens"], "a_number": before["number"], "b": values["tokens"], "b_number": values["number"]}
        return graph.place(piece(_CHANGED), inputs)["changed"]

    def agreeing_exits(self, graph: Assembly, values: Names) -> str:
        agreeing = self.number(graph, 0.0)
        for exit_ in self.passed:
            equal = graph.place(piece(_EQUAL), {"a": exit_["tokens"], "b": values["tokens"]})["equal"]
            agreeing = self.combine(graph, "result = Add(agreeing, equal)", agreeing=agreeing, equal=equal)
        return agreeing


RULES: dict[str, type[StopRule]] = {
    "fixed": FixedRule,
    "entropy": EntropyRule,
    "confidence": ConfidenceRule,
    "patience": PatienceRule,
    "learned": LearnedRule,
}


def stop_rule(policy: ExitPolicy, vocabulary: int, blank: int) -> StopRule:
    """The rule of a policy.

    Raises:
        UserError: a graph cannot compute what it reads.
    """
    graphed = policy.name in RULES and (
        not isinstance(policy, LearnedPolicy) or all(hasattr(LearnedRule, name) for name in policy.weights)
    )
    if not graphed:
        raise UserError(f"policy {policy.name}: a graph cannot compute what it reads; choose among {', '.join(RULES)}")
    return RULES[policy.name](policy, vocabulary, blank)


def threshold_of(policy: ExitPolicy) -> float:
    """The number that a self-stopping file holds as ``threshold``."""
    return float(policy.exit_layer if isinstance(policy, FixedExitPolicy) else getattr(policy, "threshold"))  # noqa: B009
