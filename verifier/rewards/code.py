"""Reward `code`: whether model-written code does what its cases ask. The code runs in a sandbox, the judging here.

What is expected never enters the process of the code: it sees inputs, and what it writes or returns is compared outside
(`equality`). Tests that are code themselves run in a second sandboxed process and call the first by value. The code has
nothing to forge: no assertion, comparison, exit status or output of its own decides.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from verifier.rewards.code_cases import CallCase, Calls, Cases, Stdio, StdioCase, UnitTests, read
from verifier.rewards.committed_code import committed_code
from verifier.rewards.equality import same_text, same_value
from verifier.rewards.score import BadTask, Score
from verifier.sandbox.access import access
from verifier.sandbox.calls import Functions, NoAnswer, Suite, try_out
from verifier.sandbox.program import Limits, Outcome, Program
from verifier.sandbox.run import SandboxError
from verifier.sandbox.values import Unsendable

SECONDS = 6.0  # that one case may compute, unless the task says otherwise


def code_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 if the code in `text` passes all cases of `reference` (`code_cases`), else 0; or the fraction that it passes.

    `metadata` may say: `cases`, `all` (the default) or `fraction`; `seconds` of CPU for one case; `memory_bytes`;
    `tolerance` for numbers in printed output, 0 if not given; `bare`, True if a text without fences and tags is all
    code (a completion of the prompt). Raises `BadAnswer`, `BadTask`, and `SandboxError`, which is the host's fault.
    """
    cases = read(reference)
    limits, fraction = _limits(metadata), metadata.get("cases", "all") == "fraction"
    code = committed_code(text, bare=bool(metadata.get("bare", False)))
    judge = _Judge(limits, fraction, float(metadata.get("tolerance", 0.0)))
    failures = judge.failures(code, cases)
    passed, total = failures.count(""), len(failures)
    first = next((why for why in failures if why), "")
    reason = f"{passed} of {total} cases{': ' + first[:200] if first else ''}"
    if fraction:
        return Score(passed / total, reason)
    return Score(float(passed == total), reason)


def _limits(metadata: Mapping[str, Any]) -> Limits:
    if metadata.get("cases", "all") not in ("all", "fraction"):
        raise BadTask(f"metadata.cases={metadata['cases']!r}: must be all or fraction")
    try:
        seconds, memory = float(metadata.get("seconds", SECONDS)), int(metadata.get("memory_bytes", 512 * 2**20))
        float(metadata.get("tolerance", 0.0))
        return Limits(cpu_seconds=seconds, wall_seconds=2 * seconds + 1, memory_bytes=memory)
    except (TypeError, ValueError) as error:
        raise BadTask(f"metadata: {error}") from None


class _Judge:
    """One check. With `all`, what follows the first failure is not run: it cannot change the score."""

    def __init__(self, limits: Limits, fraction: bool, tolerance: float) -> None:
        self.limits = limits
        self.fraction = fraction
        self.tolerance = tolerance

    def failures(self, code: str, cases: Cases) -> list[str]:
        """Why each case failed; empty where it passed."""
        match cases:
            case Stdio():
                return self._each(cases.cases, lambda case: self._stdio(code, case))
            case Calls():
                return self._calls(f"{cases.prompt}\n{code}", cases)
            case UnitTests():
                return self._tests(code, cases)

    def _each(self, cases: list[Any], judged: Callable[[Any], str]) -> list[str]:
        found: list[str] = []
        for case in cases:
            if access.seconds <= 0:
                found.append("no time left")
            elif found and found[-1] and not self.fraction:
                found.append("not run")
            else:
                found.append(judged(case))
        return found

    # ------------------------------------------------------------ whole programs

    def _stdio(self, code: str, case: StdioCase) -> str:
        program = Program(source=code, stdin=case.stdin.encode(), limits=self._limits_now())
        outcome = self._blameless(access.link.run(program))
        if outcome.ended != "exit":
            return outcome.ended
        if outcome.exit != 0:
            lines = outcome.stderr.decode(errors="replace").strip().splitlines()
            return f"exit status {outcome.exit}{': ' + lines[-1] if lines else ''}"
        try:
            given = outcome.stdout.decode()
        except UnicodeDecodeError:
            return "the output is no UTF-8"
        return "" if same_text(given, case.stdout, self.tolerance) else "wrong output"

    # ------------------------------------------------------------ calls

    def _calls(self, source: str, cases: Calls) -> list[str]:
        """All cases in one process, as long as it lives; the next in another."""
        functions: list[Functions] = []

        def judged(case: CallCase) -> str:
            if not functions:
                count = len(cases.cases)
                together = Limits(
                    cpu_seconds=self.limits.cpu_seconds * count,
                    wall_seconds=self.limits.wall_seconds * count,
                    memory_bytes=self.limits.memory_bytes,
                )
                functions.append(Functions(access.link, source, together.shortened(access.seconds)))
            try:
                seconds = min(self.limits.wall_seconds, access.seconds)
                given = functions[0].call(cases.entry, case.arguments, case.keywords, seconds)
            except Unsendable as error:
                raise BadTask(f"the reference: {error}") from None
            except NoAnswer as error:
                if functions[0].lost:
                    functions.pop().close()
                return str(error)
            return "" if same_value(given, case.returns) else "wrong value"

        try:
            return self._each(cases.cases, judged)
        finally:
            for left in functions:
                left.close()

    # ------------------------------------------------------------ tests

    def _tests(self, code: str, cases: UnitTests) -> list[str]:
        tests = Suite(prompt=_complete(cases.prompt), entry=cases.entry, tests=cases.tests)
        trial = try_out(access.link, _solution(code, cases), tests, self._limits_now())
        self._blameless(trial.tests)
        if trial.solution:
            self._blameless(trial.solution)
        return trial.failures

    def _limits_now(self) -> Limits:
        return self.limits.shortened(access.seconds)

    def _blameless(self, outcome: Outcome) -> Outcome:
        """Raises `SandboxError` if the host is to blame for the end."""
        if outcome.starved:
            raise SandboxError(f"starved: it waited for a CPU for {outcome.waited_seconds:.1f} s")
        return outcome


def _solution(code: str, cases: UnitTests) -> str:
    """The whole function: the prompt and what goes on from it, or the prompt and then a function of its own.

    Told apart by text: hostile code is not even parsed in this process.
    """
    name = re.escape(cases.entry.partition("(")[0])
    defines = re.search(rf"^(async\s+)?(def|class)\s+{name}\b|^{name}\s*=", code, re.MULTILINE)
    return f"{_complete(cases.prompt)}\n{code}" if defines else f"{cases.prompt}{code}"


def _complete(prompt: str) -> str:
    """A prompt ends with a function that has no more than its docstring, or not even that: made into whole code."""
    try:
        compile(prompt, "prompt", "exec", dont_inherit=True)
    except SyntaxError:
        return prompt.rstrip() + "\n    pass\n"
    return prompt
