"""A run's directory has one learner at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from learner.claim import NAME, claim

CODE = "import sys; from pathlib import Path; from learner.claim import claim; claim(Path(sys.argv[1])); "


def other(directory: Path, then: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CODE + then, str(directory)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_learner_is_told_which_process_writes_there_until_that_ends(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "new"
    with other(directory, "print('claimed', flush=True); sys.stdin.read()") as first:
        assert first.stdout
        assert first.stdout.readline() == "claimed\n"
        with pytest.raises(ValueError, match=rf"another learner \(process {first.pid} on .*\) writes there: stop it"):
            claim(directory)
        first.kill()
    claim(directory)
    assert (directory / NAME).read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    claim(tmp_path)
    assert "cannot be locked ([Errno 37] No locks available): nothing keeps a second learner away" in caplog.text
