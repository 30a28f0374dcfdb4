"""Reward `custom`: a function of the user's, in the sandbox or in the workers, and what is said when it will not do."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from verifier_doubles import ROOT, Verifier

from verifier.rewards import custom
from verifier.rewards.custom import Installed, custom_reward
from verifier.rewards.custom_source import MOST_BYTES, CustomFunction, find
from verifier.rewards.score import BadTask, Score
from verifier.worker import judge

MODULE = """
import os, sys
from mine.words import GREETING

def polite(text, reference, metadata):
    print("what it prints is nobody's business")
    if text == "sleep":
        import time; time.sleep(60)
    if text == "spin":
        while True: pass
    if text == "leave":
        os._exit(0)
    if text == "oops":
        raise KeyError(text)
    if text == "memory":
        return len(bytearray(2**40))
    if text == "files":
        return float(os.path.exists("/etc/passwd")), "of the host"
    if text.startswith("return "):
        return eval(text[7:])
    return float(GREETING in text) * metadata.get("worth", 1.0), f"{reference} by {metadata['question']}"

NUMBER = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package `mine` lies, among other things."""
    folder = tmp_path_factory.mktemp("custom")
    (folder / "mine" / "deep").mkdir(parents=True)
    (folder / "mine" / "__init__.py").touch()
    (folder / "mine" / "words.py").write_text("GREETING = 'good day'\n")
    (folder / "mine" / "manners.py").write_text(MODULE)
    (folder / "mine" / "deep" / "notes.txt").write_text("no Python")
    (folder / "single.py").write_text("def half(text, reference, metadata):\n    return 0.5\n")
    (folder / "broken.py").write_text("import no_such_library\n\ndef reward(*_): return 1.0\n")
    return folder


Ask = Callable[..., Any]


@pytest.fixture(scope="module", params=[False, True], ids=["sandboxed", "trusted"])
def served(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Verifier, bool]]:
    options = ["custom.function=mine.manners:polite", f"custom.path=[{folder}]", f"custom.trusted={request.param}"]
    verifier = Verifier(*options, silence=300.0)
    yield verifier, request.param
    verifier.close()


def test_its_value_and_its_words_are_in_the_verdict(served: tuple[Verifier, bool]) -> None:
    verifier, _ = served
    verdict = verifier.judge(
        "<think>a</think><answer>good day</answer>",
        "praise",
        reward="0.5*format + custom",
        further={"question": "ada", "worth": 0.25},
    )
    assert verdict.parts == {"format": 1.0, "custom": 0.25}
    assert "custom: praise by ada" in verdict.reason
    assert verifier.judge("hello", "", reward="custom", further={"question": "?"}).reward == 0.0


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("return 1.5", "returned 1.5: must be a number of 0 to 1"),
        ("return -0.1", "returned -0.1: must be a number of 0 to 1"),
        ("return float('nan')", "returned nan: must be a number of 0 to 1"),
        ("return None", "returned None: must be"),
        ("return '1'", "returned 1: must be"),
        ("return (0.5, 0.5)", "must be a number of 0 to 1, or that and a text"),
        ("oops", "raised KeyError: 'oops'"),
    ],
)
def test_what_is_no_reward_is_void_and_says_so(served: tuple[Verifier, bool], text: str, culprit: str) -> None:
    verdict = served[0].judge(text, "", reward="custom", further={"question": "?"})
    assert verdict.void
    assert "custom.function=mine.manners:polite" in verdict.reason
    assert culprit in verdict.reason


@pytest.mark.parametrize(("text", "value"), [("return True", 1.0), ("return 0", 0.0), ("return (1, 'yes')", 1.0)])
def test_numbers_and_truths_are_rewards(served: tuple[Verifier, bool], text: str, value: float) -> None:
    assert served[0].judge(text, "", reward="custom", further={"question": "?"}).reward == value


def test_a_text_that_it_cannot_get_done_with_gets_nothing_and_the_next_is_judged(
    served: tuple[Verifier, bool],
) -> None:
    verifier, _ = served
    verdict = verifier.judge("spin", "", reward="custom", further={"question": "?"}, seconds=0.5)
    assert (verdict.reward, "timeout after" in verdict.reason) == (0.0, True), verdict
    assert verifier.judge("good day", "", reward="custom", further={"question": "?"}).reward == 1.0


def test_it_sees_no_file_of_the_host_and_runs_out_of_its_own_memory_only(served: tuple[Verifier, bool]) -> None:
    verifier, _ = served
    assert verifier.judge("files", "", reward="custom", further={"question": "?"}).reward == 0.0
    verdict = verifier.judge("memory", "", reward="custom", further={"question": "?"})
    assert verdict.reward in (0.0, None), "a MemoryError that the function raises in the sandbox is its own error"
    assert verifier.judge("good day", "", reward="custom", further={"question": "?"}).reward == 1.0


def test_a_function_that_ends_its_process_is_void_and_a_sandboxed_one_leaves_the_worker_alone(
    served: tuple[Verifier, bool],
) -> None:
    verifier, trusted = served
    workers = verifier.workers()
    verdict = verifier.judge("leave", "", reward="custom", further={"question": "?"})
    assert verdict.void
    assert ("the worker was lost" if trusted else "the process ended") in verdict.reason
    assert (verifier.workers() == workers) == (not trusted)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["custom.function=mine"], "custom.function=mine: must be written package.module:name"),
        (["custom.function=nowhere.at.all:f"], "there is no module nowhere.at.all in"),
        (["custom.function=broken:reward"], "custom.function=broken:reward cannot be imported in the sandbox"),
        (["custom.function=broken:reward"], "No module named 'no_such_library'"),
        (["custom.function=broken:reward", "custom.trusted=true"], "No module named 'no_such_library'"),
        (["custom.function=mine.manners:NUMBER"], "NUMBER cannot be called"),
        (["custom.function=mine.manners:NUMBER", "custom.trusted=true"], "it cannot be called"),
        (["custom.function=mine.manners:absent"], "cannot import name 'absent'"),
        (["custom.path=[/no/folder]"], "custom.path: '/no/folder' is not a folder"),
    ],
)
def test_a_function_that_cannot_be_had_is_refused_at_the_start(folder: Path, options: list[str], sentence: str) -> None:
    path = [] if "custom.path" in options[0] else [f"custom.path=[{folder}]"]
    command = [sys.executable, "-m", "verifier", "broker=tcp://127.0.0.1:9", "verifier.welcome_seconds=0.1"]
    ended = subprocess.run(
        [*command, *path, *options], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_a_function_the_reward_is_void_and_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom, "installed", Installed())
    assert judge("custom", "x", "", {})[1:] == (
        "void",
        "this verifier has no such function: start it with custom.function=package.module:name",
    )


def test_a_module_that_cannot_be_imported_makes_every_check_void(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Installed()
    installed.install(find("broken:reward", [str(folder)], trusted=True))
    monkeypatch.setattr(custom, "installed", installed)
    with pytest.raises(BadTask, match=r"custom\.function=broken:reward cannot be imported: ModuleNotFoundError"):
        custom_reward("x", "", {})


def test_a_trusted_function_is_found_and_called_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    installed = Installed()
    installed.install(find("single:half", [str(folder)], trusted=True))
    monkeypatch.setattr(custom, "installed", installed)
    assert custom_reward("x", "", {}) == Score(0.5, "0.5")


def test_the_files_of_a_package_go_along_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    found = find("mine.manners:polite", [str(folder)], trusted=False)
    assert set(found.files()) == {"mine/__init__.py", "mine/manners.py", "mine/words.py"}
    assert found.place == folder / "mine"
    alone = find("single:half", [str(tmp_path), str(folder)], trusted=False)
    assert (set(alone.files()), alone.place) == ({"single.py"}, folder / "single.py")
    (tmp_path / "large.py").write_bytes(b"#" * (MOST_BYTES + 1))
    with pytest.raises(ValueError, match="more than"):
        CustomFunction("large", "f", str(tmp_path), False).files()
