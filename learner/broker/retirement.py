"""Tasks that are solved need no more rollouts: "no positive resampling" (ScaleRL, Khatri et al. 2025).

A task retires for good when the share of its verdicts that pass reaches a rate. Whole groups are counted, when they are
finished: the first verdicts of a group are those of its shortest completions, and would say too much. The state follows
from the order of the calls alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PASSED = 0.999  # a reward above this passes: the highest is 1, and sums of parts are rounded


@dataclass(slots=True)
class History:
    """What the finished groups of one task have brought."""

    rollouts: int = 0
    passed: int = 0


class Retirement:
    """Pass rates by task, and the tasks that have retired. `pass_rate` 0: none ever does, and nothing is kept."""

    def __init__(self, pass_rate: float = 0.0, after: int = 1) -> None:
        self.pass_rate = pass_rate
        self.after = after  # rollouts before which no task retires
        self.retired: set[str] = set()  # task ids
        self.histories: dict[str, History] = {}  # of the others

    def finished(self, task_id: str, rewards: Sequence[float]) -> None:
        """A group of the task is finished; `rewards` are those of its samples that got one."""
        if not self.pass_rate or task_id in self.retired:
            return
        history = self.histories.setdefault(task_id, History())
        history.rollouts += len(rewards)
        history.passed += sum(reward > PASSED for reward in rewards)
        if history.rollouts >= self.after and history.passed / history.rollouts >= self.pass_rate:
            self.retired.add(task_id)
            del self.histories[task_id]

    def history(self, task_id: str) -> tuple[int, int, bool]:
        """Rollouts of a task, those that passed, and whether it has retired, for a journal."""
        known = self.histories.get(task_id, History())
        return known.rollouts, known.passed, task_id in self.retired

    def restore(self, histories: Mapping[str, tuple[int, int, bool]]) -> None:
        """Be what `history` said of every task."""
        self.retired = {task_id for task_id, (_, _, retired) in histories.items() if retired}
        self.histories = {
            task_id: History(rollouts, passed)
            for task_id, (rollouts, passed, retired) in histories.items()
            if not retired
        }
