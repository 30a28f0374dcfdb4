"""Metamath: a proof of the task's statement, checked here by the format's few rules.

The answer is no more than a proof, a list of labels or the compressed form; the statement, its hypotheses and all that
a label can name are the task's. The checker is our own: the format is three rules, the libraries for it are programs
and not kept as packages, and so it runs in the locked-in worker without a process of its own. Its tests hold it against
Debian's `metamath`. All of its work is counted, and bounded.

Source: N. Megill and D. Wheeler, Metamath (2019), chapter 4 and appendix B (compressed proofs).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from verifier.rewards.committed_code import committed_code
from verifier.rewards.parameters import Parameters
from verifier.rewards.score import BadAnswer, BadTask, Score

MOST_DATABASE_CHARACTERS = 4 * 2**20  # a theorem's own surroundings, not all of set.mm
MOST_STEPS = 200_000
MOST_SYMBOLS = 5_000_000  # that all steps together may write


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A $f (`floating`: a type and a variable) or a $e."""

    label: str
    statement: tuple[str, ...]
    floating: bool


@dataclass(frozen=True, slots=True)
class Assertion:
    """An axiom or theorem: what a step by its label needs, in order, and what it gives."""

    hypotheses: tuple[Hypothesis, ...]  # mandatory ones
    distinct: frozenset[tuple[str, str]]  # sorted pairs
    statement: tuple[str, ...]


@dataclass(slots=True)
class _Scope:
    """What a block `${ … $}` has said so far."""

    hypotheses: list[Hypothesis] = field(default_factory=list)
    distinct: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Theorem:
    """What is to be proved, and everything that its proof may name."""

    goal: Assertion
    assertions: Mapping[str, Assertion]
    hypotheses: Mapping[str, Hypothesis]  # in its scope
    distinct: frozenset[tuple[str, str]]  # in its scope, of all variables
    variables: frozenset[str]


def metamath_proof(text: str, reference: Mapping[str, Any], metadata: Mapping[str, Any]) -> Score:
    """1 if the answer proves `reference["theorem"]` from `reference["database"]`, else 0.

    The reference: `database`, Metamath source whose own proofs are taken as they are; `theorem`, the statement without
    its proof, `th1 $p |- t = t`, with what belongs to it alone before it: `min $e |- P $. maj $e |- ( P -> Q ) $.
    mp $p |- Q`. The answer is a proof, or the whole statement with one, of which the proof alone is read.
    Raises `BadAnswer`, `BadTask`. Source: Metamath book, chapter 4.
    """
    task = Parameters(reference, "reference", ("kind", "database", "theorem"))
    theorem = read_theorem(task.text("database"), task.text("theorem"))
    steps = proof_tokens(committed_code(text))
    verify(theorem, steps)
    return Score(1.0, f"proved in {len(steps)} tokens")


def proof_tokens(code: str) -> list[str]:
    """The proof in an answer. Raises `BadAnswer`."""
    tokens = code.split()
    if tokens.count("$=") == 1:
        tokens = tokens[tokens.index("$=") + 1 :]
        if tokens[-1:] == ["$."]:
            del tokens[-1]
    elif tokens[-1:] == ["$."]:
        del tokens[-1]
    if bad := next((token for token in tokens if "$" in token or not token.isascii()), ""):
        raise BadAnswer(f"{bad[:40]!r} has no place in a proof")
    if "?" in tokens:
        raise BadAnswer("the proof has gaps: ?")
    if not tokens:
        raise BadAnswer("there is no proof")
    return tokens


# ---------------------------------------------------------------- the database


@lru_cache(maxsize=8)
def read_theorem(database: str, theorem: str) -> Theorem:
    """What `theorem` means after `database`. Raises `BadTask`."""
    if len(database) > MOST_DATABASE_CHARACTERS:
        raise BadTask(f"reference.database has {len(database)} characters; {MOST_DATABASE_CHARACTERS} are read")
    reader = _Reader()
    try:
        reader.read(_tokens(database))
        if len(reader.scopes) != 1:
            raise BadTask("reference.database: a block is not closed")
        last = reader.read(iter([*theorem.replace("$=", " ").split(), "$=", "$."]))
    except StopIteration:
        raise BadTask("reference: a Metamath statement is not closed") from None
    if last is None:
        raise BadTask("reference.theorem: a statement `label $p …` is wanted")
    goal = reader.assertions.pop(last)
    return Theorem(
        goal=goal,
        assertions=reader.assertions,
        hypotheses={each.label: each for each in reader.in_scope()},
        distinct=frozenset(pair for scope in reader.scopes for pair in scope.distinct),
        variables=frozenset(reader.variables),
    )


def _tokens(text: str) -> Iterator[str]:
    tokens = iter(text.split())
    for token in tokens:
        if token == "$(":
            if "$)" not in tokens:  # which reads up to there
                raise BadTask("reference: a comment is not closed")
        else:
            yield token


class _Reader:
    """Reads statements one after the other."""

    def __init__(self) -> None:
        self.scopes = [_Scope()]
        self.constants: set[str] = set()
        self.variables: set[str] = set()
        self.labels: set[str] = set()
        self.assertions: dict[str, Assertion] = {}

    def in_scope(self) -> list[Hypothesis]:
        """Hypotheses that hold here, in order."""
        return [each for scope in self.scopes for each in scope.hypotheses]

    def read(self, tokens: Iterator[str]) -> str | None:
        """All statements; the label of the last one, if it was a $p."""
        label, last = "", None
        for token in tokens:
            last = None
            match token:
                case "$c":
                    self.constants.update(_until(tokens, "$."))
                case "$v":
                    self.variables.update(_until(tokens, "$."))
                case "${":
                    self.scopes.append(_Scope())
                case "$}":
                    self.scopes.pop()
                    if not self.scopes:
                        raise BadTask("reference: a block closes that was not opened")
                case "$d":
                    names = _until(tokens, "$.")
                    self.scopes[-1].distinct.update(_pair(a, b) for a in names for b in names if a < b)
                case "$f" | "$e":
                    statement = self._known(_until(tokens, "$."))
                    hypothesis = Hypothesis(self._new(label), statement, token == "$f")
                    self._typed(hypothesis)
                    self.scopes[-1].hypotheses.append(hypothesis)
                case "$a":
                    self.assertions[self._new(label)] = self._assertion(self._known(_until(tokens, "$.")))
                case "$p":
                    statement = self._known(_until(tokens, "$="))
                    _until(tokens, "$.")
                    self.assertions[self._new(label)] = self._assertion(statement)
                    last = label
                case _ if token.startswith("$"):
                    raise BadTask(f"reference: {token} is not understood")
                case _:
                    label = token
        return last

    def _known(self, statement: list[str]) -> tuple[str, ...]:
        if not statement or statement[0] not in self.constants:
            raise BadTask(f"reference: {' '.join(statement)[:80]!r} does not begin with a constant")
        if bad := next((s for s in statement if s not in self.constants and s not in self.variables), None):
            raise BadTask(f"reference: {bad[:40]!r} is not declared")
        return tuple(statement)

    def _new(self, label: str) -> str:
        if not label or label in self.labels:
            raise BadTask(f"reference: the label {label[:40]!r} is missing or taken")
        self.labels.add(label)
        return label

    def _typed(self, hypothesis: Hypothesis) -> None:
        """A $f is a type and a variable that has none yet; variables of a $e have one."""
        typed = {each.statement[1] for each in self.in_scope() if each.floating}
        names = set(hypothesis.statement) & self.variables
        if hypothesis.floating:
            if len(hypothesis.statement) != 2 or len(names) != 1 or names & typed:
                raise BadTask(f"reference: {hypothesis.label} must be a type and a variable that has none yet")
        elif names - typed:
            raise BadTask(f"reference: {hypothesis.label}: {min(names - typed)} has no type")

    def _assertion(self, statement: tuple[str, ...]) -> Assertion:
        there = self.in_scope()
        said = [each.statement for each in there if not each.floating] + [statement]
        used = {symbol for text in said for symbol in text if symbol in self.variables}
        mandatory = tuple(each for each in there if not each.floating or each.statement[1] in used)
        if untyped := used - {each.statement[1] for each in mandatory if each.floating}:
            raise BadTask(f"reference: {min(untyped)} has no type")
        pairs = {pair for scope in self.scopes for pair in scope.distinct if used.issuperset(pair)}
        return Assertion(mandatory, frozenset(pairs), statement)


def _until(tokens: Iterator[str], end: str) -> list[str]:
    found: list[str] = []
    while (token := next(tokens)) != end:
        found.append(token)
    return found


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)


# ---------------------------------------------------------------- the proof


def verify(theorem: Theorem, tokens: list[str]) -> None:
    """Whether `tokens` prove the theorem. Raises `BadAnswer`, with the first step that fails."""
    machine = _Machine(theorem)
    if tokens[0] == "(":
        machine.run_compressed(tokens)
    else:
        for label in tokens:
            machine.step(label)
    if len(machine.stack) != 1:
        raise BadAnswer(f"the proof leaves {len(machine.stack)} statements, not one")
    if machine.stack[0] != theorem.goal.statement:
        raise BadAnswer(f"it proves {' '.join(machine.stack[0])[:120]!r}, which is not the statement")


class _Machine:
    """A stack of proved statements."""

    def __init__(self, theorem: Theorem) -> None:
        self.theorem = theorem
        self.stack: list[tuple[str, ...]] = []
        self._steps = 0
        self._symbols = 0

    def push(self, statement: tuple[str, ...]) -> None:
        self._steps += 1
        self._symbols += len(statement)
        if self._steps > MOST_STEPS or self._symbols > MOST_SYMBOLS:
            raise BadAnswer("the proof is too long to be checked")
        self.stack.append(statement)

    def step(self, label: str) -> None:
        if assertion := self.theorem.assertions.get(label):
            self._apply(label, assertion)
        elif hypothesis := self.theorem.hypotheses.get(label):
            self.push(hypothesis.statement)
        else:
            raise BadAnswer(f"there is no {label[:40]!r} to be used here")

    def _apply(self, label: str, assertion: Assertion) -> None:
        bottom = len(self.stack) - len(assertion.hypotheses)
        if bottom < 0:
            raise BadAnswer(f"{label}: it needs {len(assertion.hypotheses)} statements, {len(self.stack)} are there")
        given = self.stack[bottom:]
        del self.stack[bottom:]
        substitution: dict[str, tuple[str, ...]] = {}
        for hypothesis, statement in zip(assertion.hypotheses, given, strict=True):
            if hypothesis.floating:  # before every $e that has its variable: `_Reader._typed`
                kind, variable = hypothesis.statement
                if statement[0] != kind:
                    raise BadAnswer(f"{label}: {variable} must be a {kind}, got {statement[0]}")
                substitution[variable] = statement[1:]
            elif self._substituted(hypothesis.statement, substitution) != statement:
                raise BadAnswer(f"{label}: {' '.join(statement)[:120]!r} is not the {hypothesis.label} that it needs")
        self._keep_apart(label, assertion, substitution)
        self.push(self._substituted(assertion.statement, substitution))

    def _substituted(self, statement: tuple[str, ...], by: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        self._symbols += sum(len(by.get(symbol, ())) for symbol in statement)
        if self._symbols > MOST_SYMBOLS:
            raise BadAnswer("the proof is too long to be checked")
        return tuple(part for symbol in statement for part in by.get(symbol, (symbol,)))

    def _keep_apart(self, label: str, assertion: Assertion, by: Mapping[str, tuple[str, ...]]) -> None:
        """What must be distinct has no variable in common, and the theorem says of each two that they are distinct."""
        for first, second in assertion.distinct:
            for a in self.theorem.variables.intersection(by[first]):
                for b in self.theorem.variables.intersection(by[second]):
                    if a == b or _pair(a, b) not in self.theorem.distinct:
                        raise BadAnswer(f"{label}: {a} and {b} must be distinct")

    def run_compressed(self, tokens: list[str]) -> None:
        """Appendix B: labels in brackets, then numbers to base 20 and 5; Z marks a step to be used again."""
        if ")" not in tokens:
            raise BadAnswer("the list of labels is not closed")
        close = tokens.index(")")
        mandatory = [each.label for each in self.theorem.goal.hypotheses]
        labels = [*mandatory, *tokens[1:close]]
        if len(set(labels)) != len(labels):
            raise BadAnswer("the list of labels names something twice")
        marked: list[tuple[str, ...]] = []
        number, after_step = 0, False
        for letter in "".join(tokens[close + 1 :]):
            if "U" <= letter <= "Y":
                number, after_step = 5 * number + ord(letter) - ord("U") + 1, False
                if number > 10**9:
                    raise BadAnswer("the proof has a number that is too large")
            elif "A" <= letter <= "T":
                at = 20 * number + ord(letter) - ord("A")
                number, after_step = 0, True
                if at < len(labels):
                    self.step(labels[at])
                elif at - len(labels) < len(marked):
                    self.push(marked[at - len(labels)])
                else:
                    raise BadAnswer(f"there is no step {at + 1}")
            elif letter == "Z" and after_step:
                marked.append(self.stack[-1])
                after_step = False
            else:
                raise BadAnswer(f"{letter!r} has no place there")
        if number:
            raise BadAnswer("the proof ends within a number")
