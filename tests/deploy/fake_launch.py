"""`python -m deploy.local` with `fake_role` for every role."""

import runpy

from deploy.local import launch

launch.MODULES = dict.fromkeys(launch.MODULES, "fake_role")

if __name__ == "__main__":
    runpy.run_module("deploy.local", run_name="__main__", alter_sys=True)
