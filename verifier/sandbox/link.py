"""A line to a sandbox: whoever has one can have programs run. It can be handed to another process."""

import fcntl
import json
import os
import socket
from dataclasses import asdict
from types import TracebackType

from verifier.sandbox.program import Outcome, Program
from verifier.sandbox.run import Run, SandboxError


class Link:
    """One end of a line; `connection` comes from `Sandbox.connect`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def run(self, program: Program, *further: int) -> Outcome:
        """Run it and wait for its end. Raises `SandboxError`."""
        return self.start(program, *further).wait()

    def start(self, program: Program, *further: int) -> Run:
        """Have it started; it finds the descriptors `further` from 3 on. Raises `SandboxError`, `ValueError`.

        It may have to wait for a free slot; its time counts from its start.
        """
        header = json.dumps({"limits": asdict(program.limits), "argv": bool(program.argv)}).encode()
        body = program.packed()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        handed = [theirs.detach(), _sealed(body), _sealed(program.stdin), out_end, err_end]
        run = Run(ours, out, err, program.limits)
        try:
            socket.send_fds(self._connection, [header], [*handed, *further])
        except OSError as error:
            run.close()
            raise SandboxError(f"the sandbox is gone: {error}") from None
        finally:
            for descriptor in handed:
                os.close(descriptor)
        return run

    def close(self) -> None:
        """Let go; what still runs is ended."""
        self._connection.close()

    def __enter__(self) -> "Link":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sealed(content: bytes) -> int:
    """A file in memory that holds `content` and can never be written again."""
    descriptor = os.memfd_create("content", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(
        descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    )
    return descriptor
