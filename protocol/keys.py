"""`python -m protocol.keys DIR`: a key pair for each role, with which only their holders can take part in a run."""

import sys
from pathlib import Path

from protocol.security import ROLES, InsecureKeys, make


def main() -> None:
    """Write the keys, say what to do with them."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m protocol.keys DIR")
    directory = Path(sys.argv[1])
    try:
        make(directory)
    except (InsecureKeys, OSError) as error:
        sys.exit(f"keys: {error}")
    print(
        f"keys of {', '.join(ROLES)} are in {directory}: give every role security.key_directory={directory}\n"
        "a host needs ROLE.key_secret of the roles that run there, and all files *.key, which are no secrets"
    )


if __name__ == "__main__":
    main()
