"""What `up` writes into RUN/slurm: the sbatch script of each role, and what they share. Pure: texts from options.

The templates beside this file are the scripts; `{{name}}` is filled in. They need nothing of Python outside the steps
that they start, so that a container is only seen by the roles.
"""

import re
import shlex
import zlib
from collections.abc import Mapping
from pathlib import Path

from deploy.slurm.config import ClusterConfig, JobConfig, SlurmLauncherConfig, job, notice, python, ranks_per_node

TEMPLATES = Path(__file__).parent / "templates"
PLACE = re.compile(r"{{(\w+)}}")
JOBS = ("cold_start", "learner", "actor", "verifier")
MODULES = {"actor": "actors", "verifier": "verifier"}
NICE = {"actor": 1000, "verifier": 500}  # the learner of a run goes first: the others would wait for it on their nodes
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}


def job_name(role: str, run: str, directory: Path) -> str:
    """By which the jobs of a run are known to Slurm, whoever submits them: `actor@sums-1f3a`."""
    return f"{role}@{run}-{zlib.crc32(str(directory).encode()) & 0xFFFF:04x}"


def render(
    config: SlurmLauncherConfig,
    *,
    run: str,
    directory: Path,
    token: str,
    interpreter: str,
    working_directory: Path,
    drain_seconds: float,
) -> dict[str, str]:
    """The files of `directory`/slurm, by name. `token` is what tells this directory from any other."""
    names = {role: job_name(role, run, directory) for role in JOBS}
    places = {
        "name": run,
        "run": str(directory),
        "directory": str(working_directory),
        "token": token,
        "python": shlex.quote(python(config, interpreter)),
        "broker": shlex.quote(config.broker),
        "restarts": str(config.restarts),
        "reset_seconds": str(round(config.restart_reset_seconds)),
        "start_seconds": str(round(config.start_seconds)),
        "ranks": str(ranks_per_node(config)),
        "nodes": str(config.learner.nodes),
        "read_site": f"source {directory}/slurm/site.sh" if config.slurm.site else "# no slurm.site is given",
        "container": _container(config.slurm, directory),
        "actors": names["actor"],
        "verifiers": names["verifier"],
    }
    places["shell"] = _fill("shell.sh", places).rstrip()
    files = {"role.sh": _fill("role.sh", places)}
    for role, template in (("cold_start", "cold_start"), ("learner", "learner")):
        asked = job(config, "learner")
        threads = max(1, asked.cpus // (1 if role == "cold_start" else ranks_per_node(config)))
        own = {
            "job": names[role],
            "options": _options(config.slurm, asked),
            "notice": str(notice(config, "learner", drain_seconds)),
            "environment": _environment(threads),
        }
        files[f"{role}.sbatch"] = _fill(f"{template}.sbatch", {**places, **own})
    for role, count in (("actor", config.actors), ("verifier", config.verifiers)):
        asked = job(config, role)
        own = {
            "job": names[role],
            "options": _options(config.slurm, asked),
            "notice": str(notice(config, role, drain_seconds)),
            "environment": _environment(1),
            "role": role,
            "module": MODULES[role],
            "array": f"0-{max(count, 1) - 1}",
            "nice": str(NICE[role]),
        }
        files[f"{role}.sbatch"] = _fill("peer.sbatch", {**places, **own})
    return files


def _fill(template: str, places: Mapping[str, str]) -> str:
    text = (TEMPLATES / template).read_text()
    filled = PLACE.sub(lambda found: places[found[1]], text)
    return "".join(f"{line.rstrip()}\n" for line in filled.splitlines())


def _options(cluster: ClusterConfig, asked: JobConfig) -> str:
    """The lines by which a job asks for what the site and the options say."""
    words = [
        ("--partition", asked.partition or cluster.partition),
        ("--account", cluster.account),
        ("--qos", cluster.qos),
        ("--time", asked.time),
        ("--gres", asked.gres),
        ("--cpus-per-task", str(asked.cpus)),
        ("--mem", asked.memory),
    ]
    lines = [f"{name}={value}" for name, value in words if value]
    return "\n".join(f"#SBATCH {line}" for line in (*lines, *cluster.options, *asked.options))


def _container(cluster: ClusterConfig, directory: Path) -> str:
    """What stands between srun's own options and the command."""
    if not cluster.container_image:
        return ""
    mounts = [f"{directory}:{directory}", *cluster.container_mounts]
    image = shlex.quote(cluster.container_image)
    if cluster.container == "pyxis":
        shown = ",".join(each if ":" in each else f"{each}:{each}" for each in mounts)
        return f"--container-image={image} --container-mounts={shlex.quote(shown)} --container-workdir={directory}"
    return f"apptainer exec --nv --pwd {directory} --bind {shlex.quote(','.join(mounts))} {image}"


def _environment(threads: int) -> str:
    """What the roles find in their environment, unless the site file says otherwise."""
    values = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    return "\n".join(f'export {name}="${{{name}:-{value}}}"' for name, value in values.items())
