"""`python -m deploy.report runs/quickstart`: plots and report.html of a run, also of one that goes on or was ended."""

import sys
from pathlib import Path

from deploy.report.page import write


def main() -> None:
    """Write the report of the run directory that is named."""
    if len(sys.argv) != 2:
        sys.exit("report: give one run directory, as in `python -m deploy.report runs/quickstart`")
    try:
        print(write(Path(sys.argv[1])))
    except (ValueError, OSError) as error:
        sys.exit(f"report: {error}")


if __name__ == "__main__":
    main()
