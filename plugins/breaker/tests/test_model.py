"""Thousands of interleavings of admissions, reports, reloads and time, compared with a model that is slow and plain.

The model keeps every call it ever saw, and looks at all of them for each answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from gw_breaker.machine import SECOND, UNCOUNTED, Breaker, Rejection, Rules, State, Verdict

FAILURE, NEUTRAL, SUCCESS = Verdict.FAILURE, Verdict.NEUTRAL, Verdict.SUCCESS


@dataclass
class Phase:
    """One state, from a transition to the next."""

    state: str
    began: int
    rules: Rules
    """As they were when it began."""
    until: int = 0
    """Of an open one."""
    admitted: int = 0
    back: list[Verdict] = field(default_factory=list)


class Model:
    """Behaviour 15, word for word."""

    def __init__(self, rules: Rules, now: int) -> None:
        self.rules = rules
        self.phases = [Phase("closed", now, rules)]
        self.calls: list[tuple[int, Verdict, bool]] = []
        """What was reported while closed: second, verdict, slow."""

    @property
    def phase(self) -> Phase:
        return self.phases[-1]

    def next(self, state: str, now: int, until: int = 0) -> None:
        self.phases.append(Phase(state, now, self.rules, until))
        if state == "closed":
            self.calls.clear()

    def trips(self) -> int:
        """Count the trips since it was closed."""
        count = 0
        for phase in reversed(self.phases):
            if phase.state == "closed":
                break
            count += phase.state == "open" and phase.until >= 0
        return count

    def open_time(self) -> int:
        return min(self.rules.base_open * 2 ** self.trips(), self.rules.max_open)

    def trip(self, now: int) -> None:
        self.next("open", now, now + self.open_time())

    def failed(self) -> bool:
        """Whether the running half-open phase cannot succeed any more."""
        size, share = self.phase.rules.probes, self.phase.rules.success_share
        needed = min(n for n in range(1, size + 1) if n * 100 >= share * size)
        return size - self.phase.back.count(FAILURE) < needed

    def time_is_up(self, now: int) -> bool:
        span = self.phase.rules.half_open_time
        return self.phase.state == "half_open" and span > 0 and now >= self.phase.began + span

    def decide(self, now: int) -> None:
        well = self.phase.back.count(SUCCESS)
        if well and 100 * well >= self.rules.success_share * (well + self.phase.back.count(FAILURE)):
            self.next("closed", now)
        else:
            self.trip(now)

    def ask(self, now: int) -> int | str:
        """Return the number of the phase that the admission belongs to, or why there is none."""
        if self.time_is_up(now):
            self.decide(now)
        if self.phase.state == "open":
            if self.phase.until < 0 or now < self.phase.until:
                return "open"
            self.next("half_open", now)
        if self.phase.state == "half_open":
            if self.failed():
                return "half_open_recovery_failing"
            if self.phase.admitted - self.phase.back.count(NEUTRAL) >= self.phase.rules.probes:
                return "half_open_full"
            self.phase.admitted += 1
        return len(self.phases)

    def tell(self, number: int, verdict: Verdict, now: int, *, slow: bool) -> None:
        if number != len(self.phases):
            return
        if self.phase.state == "closed":
            if verdict is not NEUTRAL:
                self.calls.append((now // SECOND, verdict, slow))
                self.judge(verdict, now, slow=slow)
            return
        self.phase.back.append(FAILURE if slow and verdict is SUCCESS else verdict)
        size, share = self.phase.rules.probes, self.phase.rules.success_share
        if self.phase.back.count(SUCCESS) * 100 >= share * size and self.phase.back.count(SUCCESS):
            self.next("closed", now)
        elif self.failed() and self.phase.admitted == len(self.phase.back):
            self.trip(now)
        elif self.time_is_up(now):
            self.decide(now)

    def row(self) -> int:
        count = 0
        for _, verdict, _ in reversed(self.calls):
            if verdict is SUCCESS:
                break
            count += 1
        return count

    def judge(self, verdict: Verdict, now: int, *, slow: bool) -> None:
        rules = self.rules
        recent = [call for call in self.calls if now // SECOND - call[0] < rules.window]
        failures, laggards = sum(call[1] is FAILURE for call in recent), sum(call[2] for call in recent)
        enough = len(recent) >= rules.volume
        if (verdict is FAILURE and self.row() >= rules.consecutive) or (
            enough
            and (
                (verdict is FAILURE and failures * 100 >= rules.failure_rate * len(recent))
                or (slow and laggards * 100 >= rules.slow_rate * len(recent))
            )
        ):
            self.trip(now)

    def apply(self, rules: Rules) -> None:
        if rules.window != self.rules.window:
            self.calls.clear()
        self.rules = rules


RULES = st.builds(
    Rules,
    consecutive=st.integers(1, 6),
    failure_rate=st.sampled_from([0, 30, 50, 100]),
    volume=st.integers(1, 8),
    window=st.integers(1, 5),
    probes=st.integers(1, 5),
    base_open=st.sampled_from([SECOND // 10, SECOND, 3 * SECOND]),
    max_open=st.sampled_from([3 * SECOND, 8 * SECOND]),
    dry_run=st.booleans(),
    slow_call=st.sampled_from([0, SECOND]),
    slow_rate=st.sampled_from([50, 100]),
    success_share=st.sampled_from([1, 50, 100]),
    half_open_time=st.sampled_from([0, 2 * SECOND]),
)
DURATIONS = st.sampled_from([0, 1, SECOND // 10, SECOND // 2, SECOND - 1, SECOND, 2 * SECOND, 7 * SECOND])


class Interleavings(RuleBasedStateMachine):
    """One breaker and one model of it, given the same."""

    admissions = Bundle("admissions")

    @initialize(rules=RULES)
    def begin(self, rules):
        self.now = 5 * SECOND
        self.rules = rules
        self.breaker, self.model = Breaker(rules), Model(rules, self.now)

    @rule(target=admissions)
    def ask(self):
        said, expected = self.breaker.admit(self.now), self.model.ask(self.now)
        if isinstance(expected, int):
            assert isinstance(said, int)
            assert said != UNCOUNTED
        elif self.rules.dry_run:
            assert said == UNCOUNTED
        else:
            assert isinstance(said, Rejection)
            assert said.reason == expected
            left = self.model.phase.until - self.now if expected == "open" else self.model.open_time()
            if self.model.phase.until < 0:
                left = self.rules.max_open
            assert said.retry_after - 1 < left / SECOND <= said.retry_after or (left < SECOND and said.retry_after == 1)
        return said, expected

    @rule(admission=consumes(admissions), verdict=st.sampled_from(Verdict), slow=st.booleans())
    def tell(self, admission, verdict, slow):
        token, number = admission
        if not isinstance(token, int):
            return
        took = SECOND if slow else SECOND - 1
        self.breaker.report(token, verdict, self.now, took)
        if isinstance(number, int):
            counts_as_slow = slow and bool(self.rules.slow_call) and verdict is not NEUTRAL
            self.model.tell(number, verdict, self.now, slow=counts_as_slow)

    @rule(verdict=st.sampled_from([SUCCESS, FAILURE]), times=st.integers(1, 6))
    def whole_calls(self, verdict, times):
        for _ in range(times):
            self.tell(self.ask(), verdict, slow=False)

    @rule(target=admissions)
    def first_probe(self):
        while self.model.phase.state == "closed":
            self.whole_calls(FAILURE, 1)
        self.wait_until_it_may_be_probed()
        return self.ask()

    @rule(target=admissions, times=st.integers(1, 4))
    def more_of_them(self, times):
        return multiple(*(self.ask() for _ in range(times)))

    @rule(passed=DURATIONS)
    def wait(self, passed):
        self.now += passed

    @rule()
    def wait_until_it_may_be_probed(self):
        if self.model.phase.state == "open":
            self.now = max(self.now, self.model.phase.until)

    @rule(rules=RULES)
    def reload(self, rules):
        self.rules = rules
        self.breaker.apply(rules, self.now)
        self.model.apply(rules)

    @rule(dry=st.booleans())
    def turn_the_dry_run(self, dry):
        self.reload(replace(self.rules, dry_run=dry))

    @rule()
    def open_by_hand(self):
        self.breaker.open(self.now)
        self.model.next("open", self.now, -1)

    @rule()
    def close_by_hand(self):
        self.breaker.close(self.now)
        self.model.next("closed", self.now)

    @invariant()
    def they_agree(self):
        assert self.breaker.state.value == self.model.phase.state
        counts = self.breaker.counts(self.now)
        recent = [call for call in self.model.calls if self.now // SECOND - call[0] < self.rules.window]
        assert counts["trips"] == self.model.trips()
        if self.breaker.state is State.CLOSED:
            assert counts["calls"] == len(recent)
            assert counts["failures"] == sum(call[1] is FAILURE for call in recent)
            assert counts["slow"] == sum(call[2] for call in recent)
            assert counts["consecutive_failures"] == self.model.row()


Interleavings.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestInterleavings = Interleavings.TestCase
