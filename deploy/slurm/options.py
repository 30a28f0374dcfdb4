"""`python -m deploy.slurm.options deploy/slurm/README.md`: its option tables, written anew from the schemas."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from deploy.options import insert, table
from deploy.slurm.config import ClusterConfig, JobConfig, NodesLearnerConfig, SlurmLauncherConfig

SECTIONS = ("learner", "slurm", "jobs")


def tables() -> str:
    """What only Slurm's launcher reads; all other options are those of the roles."""
    return "\n".join(
        [
            table("", _rows(SlurmLauncherConfig, besides=SECTIONS), "The launcher"),
            table(
                "learner.", [row for row in _rows(NodesLearnerConfig) if row[0].name == "nodes"], "`learner`, besides"
            ),
            table("slurm.", _rows(ClusterConfig), "`slurm`: for all jobs"),
            table("jobs.ROLE.", _rows(JobConfig), "`jobs.learner`, `jobs.actor`, `jobs.verifier`"),
        ]
    )


def _rows(schema: type, besides: tuple[str, ...] = ()) -> list[tuple[Any, Any]]:
    made: Any = schema
    example = made()
    return [(each, getattr(example, each.name)) for each in fields(made) if each.name not in besides]


def main() -> None:
    """Write the tables into the file that is named."""
    if len(sys.argv) != 2:
        sys.exit("options: give the file that holds the tables, as in `python -m deploy.slurm.options FILE`")
    path = Path(sys.argv[1])
    try:
        path.write_text(insert(path.read_text(), tables))
    except (OSError, ValueError) as error:
        sys.exit(f"options: {path}: {error}")


if __name__ == "__main__":
    main()
