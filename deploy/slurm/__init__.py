"""Runs on a Slurm cluster: `python -m deploy.slurm up|scale|status|logs|drain|down`."""
