"""Inside the sandbox: runs proof programs one after the other and reports. It imports nothing but Python's own library.

It reads an order from stdin, `{"steps": […], "places": […], "wanted": […]}`, and writes
`{"missing": name or "", "steps": [{"exit", "stdout", "stderr"}, …], "files": {name: base64}}`. The programs read
hostile text; this process does not.
"""

import base64
import json
import os
import subprocess
import sys
from typing import Any

_MOST_BYTES = 2**20


def _place(places: list[str], name: str) -> str | None:
    return next((place for place in places if os.access(f"{place}/bin/{name}", os.X_OK)), None)


def _environment(place: str) -> dict[str, str]:
    """Debian's packages find their parts although they are only unpacked, and nobody's home."""
    libraries = [f"{place}/lib/{machine}-linux-gnu" for machine in ("x86_64", "aarch64")]
    return {
        "HOME": os.getcwd(),
        "OCAMLFIND_CONF": "/dev/null",
        "OCAMLPATH": f"{place}/lib/ocaml",
        "LD_LIBRARY_PATH": ":".join(path for path in libraries if os.path.isdir(path)),
    }


def _run(place: str, step: dict[str, Any]) -> dict[str, Any]:
    arguments = [argument.replace("{place}", place) for argument in step["arguments"]]
    with open(".stdout", "w+b") as stdout, open(".stderr", "w+b") as stderr:
        ended = subprocess.run(
            [f"{place}/bin/{step['name']}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=_environment(place),
            check=False,
        )
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read(_MOST_BYTES).decode(errors="replace"))
    return {"exit": ended.returncode, "stdout": texts[0], "stderr": texts[1]}


def main() -> None:
    """Carry out the order; stop at the first step that fails."""
    order = json.load(sys.stdin)
    report: dict[str, Any] = {"missing": "", "steps": [], "files": {}}
    for step in order["steps"]:
        place = _place(order["places"], step["name"])
        if place is None:
            report["missing"] = step["name"]
            break
        report["steps"].append(_run(place, step))
        if report["steps"][-1]["exit"] != 0:
            break
    for name in order["wanted"]:
        if os.path.isfile(name):
            with open(name, "rb") as file:
                report["files"][name] = base64.b64encode(file.read()).decode()
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
