"""How a process ended: what its exit code says, and what its log says that the code does not.

torchrun ends with exit code 1 whatever happened to a rank. Which of them died of a signal stands in the report at the
end of its log; ranks that torchrun itself stopped because of another one are in it too, and do not count.
"""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 64 * 1024  # of a log, searched for an error or a report
LONGEST = 300  # characters of an error that are shown
TELLING = re.compile(
    r" (ERROR|CRITICAL) |^[a-z-]+: |^Could not |^Key '"
    r"|^(?!.*\bChildFailedError\b)[\w.]*(Error|Exception|Exit|Interrupt)\b"  # torchrun's own says nothing
)
RANK_ENDED = re.compile(r"^  exitcode  : (-?\d+) \(pid: (\d+)\)", re.MULTILINE)  # in torchrun's report
RANK_STOPPED = re.compile(r"\bSending process (\d+) closing signal ")  # by torchrun, after another had failed


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a process."""

    cause: str  # in words that follow its name: `was killed by SIGKILL`
    log: Path
    violent: bool  # by a signal that reached it or a rank of it
    seconds: float  # that it had lived

    @property
    def told(self) -> str:
        """Of what, and where to read on."""
        return f"{self.cause} (log: {self.log})"


def describe(code: int, log: Path, begin: int, seconds: float) -> Death:
    """The end with exit code `code`, negative for a signal, of a process whose part of `log` begins at byte `begin`."""
    text = tail(log, begin)
    if code < 0:
        said = last_error(text, or_last=False)
        return Death(f"was killed by {signal_name(-code)}{_colon(said)}", log, violent=True, seconds=seconds)
    if code and (killed := killed_rank(text)):
        pid, number = killed
        cause = f"lost a rank, process {pid} was killed by {signal_name(number)}"
        return Death(cause, log, violent=True, seconds=seconds)
    said = last_error(text, or_last=True) if code else ""
    return Death(f"ended with exit code {code}{_colon(said)}", log, violent=False, seconds=seconds)


def killed_rank(text: str) -> tuple[int, int] | None:
    """Process id and signal of a rank that a signal killed, as torchrun's report in `text` has it; None: none was."""
    stopped = set(RANK_STOPPED.findall(text))
    for code, pid in RANK_ENDED.findall(text):
        if int(code) < 0 and pid not in stopped:
            return int(pid), -int(code)
    return None


def last_error(text: str, *, or_last: bool) -> str:
    """The last line that tells of an error, `or_last` the last of all; printable, cut at `LONGEST`."""
    lines = [line for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if TELLING.search(line)] or (lines if or_last else [])
    if not telling:
        return ""
    said = re.sub(r"^\S+ \S+ \w+ (ERROR|CRITICAL) ", "", telling[-1].strip())
    said = "".join(character if character.isprintable() else " " for character in said)
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}…"


def tail(log: Path, begin: int) -> str:
    """The last `TAIL_BYTES` of a log, nothing from before byte `begin`."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; a number alone for a signal without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _colon(said: str) -> str:
    return f": {said}" if said else ""
