"""Where tasks come from: a source gives the same task at an index each time, so that a run can be taken up again."""

from learner.broker.config import TaskConfig
from learner.broker.cursor import Tasks
from learner.broker.tasks.addition import AdditionTasks
from learner.broker.tasks.epochs import Epochs
from learner.broker.tasks.files import read_files
from learner.template import template

GYM = "reasoning_gym/"


def open_tasks(config: TaskConfig, seed: int) -> Tasks:
    """The source that `config` names. Raises `ValueError` with the option or the file, line and field at fault."""
    wrap = template(config.template)
    for name in ("size", "epochs"):
        if getattr(config, name) < 0:
            raise ValueError(f"task.{name}={getattr(config, name)}: must be 0 or more")
    if config.params and not config.name.startswith(GYM):
        raise ValueError(f"task.params is read only with task.name={GYM}<family>, not with task.name={config.name}")
    if config.name == "file":
        if not config.files:
            raise ValueError("task.name=file needs task.files=[path, …]")
        if config.size:
            raise ValueError(f"task.size={config.size}: a file has the size it has; leave it 0 with task.name=file")
        tasks = read_files(config.files, config.reward, wrap)
        return Epochs(tasks, epochs=config.epochs, seed=seed if config.shuffle else None)
    if config.files:
        raise ValueError(f"task.files is read only with task.name=file, not with task.name={config.name}")
    if config.name == "addition":
        return AdditionTasks(config, seed, wrap)
    if config.name.startswith(GYM):
        from learner.broker.tasks.gym import GymTasks  # takes seconds: only where it is asked for

        return GymTasks(config, seed, wrap)
    raise ValueError(f"task.name={config.name}: must be addition, file, or {GYM}<family>")
