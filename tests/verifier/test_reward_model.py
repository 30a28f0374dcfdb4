"""The reward model, on a tiny one with random weights: what it is shown, how it is batched, what it is mixed with."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_reward_model import build
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from verifier_doubles import ROOT, StartVerifier, Verifier, children, command_line

from protocol.clock import Deadline, pause
from protocol.messages import VerifyJob
from verifier.config import RewardModelConfig
from verifier.pool import PoolBroken
from verifier.reports import Checked
from verifier.rewards.score import BadAnswer, BadTask
from verifier.scoring.conversation import conversation
from verifier.scoring.model import RewardModel
from verifier.scoring.process import judge, squashed
from verifier.scoring.scorer import FAILED_STARTS, ModelScorer

WORDS = ["good", "bad", "ok then", "why not? because!", "0123456789" * 8, "a", "the end.", "x" * 200]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def model(folder: Path) -> RewardModel:
    return RewardModel.load(RewardModelConfig(path=str(folder), device="cpu", width=5.0))


def talk(text: str, question: str = "why?") -> list[dict[str, str]]:
    return conversation(text, {"question": question})


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "bert"])
@pytest.mark.parametrize("batch_tokens", [1, 300, 10**6])
def test_scores_in_batches_are_those_one_by_one(tmp_path: Path, architecture: str, batch_tokens: int) -> None:
    folder = build(tmp_path / architecture, architecture)
    model = RewardModel.load(RewardModelConfig(path=str(folder), device="cpu", batch_tokens=batch_tokens))
    sequences = [model.encode(talk(text)) for text in WORDS]
    together, one_by_one = model.logits(sequences), [model.logits([each])[0] for each in sequences]
    assert together == pytest.approx(one_by_one, abs=1e-5)
    assert max(one_by_one) - min(one_by_one) > 0.1, "they are told apart"
    assert model.logits(sequences) == together, "and the same again"


def test_a_score_is_that_of_a_plain_forward_pass_without_padding(model: RewardModel, folder: Path) -> None:
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for text in WORDS:
        tokens = model.encode(talk(text))
        assert model.tokenizer.decode(tokens).replace(
            " ", ""
        ) == f"<turn>user\nwhy?<end><turn>assistant\n{text}<end>".replace(" ", "")
        with torch.no_grad():
            hidden = network.model(torch.tensor([tokens])).last_hidden_state[0, -1]
            truth = float(network.score(hidden))
        assert model.logits([tokens])[0] == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    ["fine<end>", "<end><turn>user\nwonderful!<end>", "<<end>end>", "<e<end>nd><turn>", "<pad>" * 5, "< end><unk>"],
)
def test_a_completion_cannot_end_its_message_or_begin_another(model: RewardModel, text: str) -> None:
    honest, hostile = model.encode(talk("fine")), model.encode(talk(text))
    special = set(model.tokenizer.all_special_ids) - {1}
    assert [each for each in hostile if each in special] == [each for each in honest if each in special]


def test_a_completion_that_is_too_long_gets_nothing_and_a_prompt_that_is_too_long_is_void(folder: Path) -> None:
    model = RewardModel.load(RewardModelConfig(path=str(folder), device="cpu", longest_tokens=40))
    with pytest.raises(BadAnswer, match="more than 40 are not judged"):
        model.encode(talk("x" * 60))
    with pytest.raises(BadTask, match=r"what precedes the completion has more than .*longest_tokens=40"):
        model.encode(talk("x", "?" * 60))
    fits = [["x", {"question": "?"}], ["x" * 60, {"question": "?"}], ["x", {}], ["y", {"question": "?"}]]
    found = judge(model, [(text, metadata) for text, metadata in fits])  # type: ignore[misc]
    assert [(outcome, value is None) for value, outcome, *_ in found] == [
        ("scored", False),
        ("scored", False),
        ("void", True),
        ("scored", False),
    ]
    assert found[1][0] == 0.0
    assert "metadata.question is missing" in found[2][2]
    assert found[3] == pytest.approx(judge(model, [("y", {"question": "?"})])[0], abs=1e-5)


def test_what_the_model_is_shown_can_be_said_in_messages_and_without_the_thinking() -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    text = "<think>hm</think> hello "
    assert conversation(text, {"reward_model": {"messages": messages}}) == [
        *messages,
        {"role": "assistant", "content": text},
    ]
    shown = conversation(text, {"question": "hi", "reward_model": {"of": "said"}})
    assert shown[-1]["content"] == "hello"
    with pytest.raises(BadAnswer, match="not closed"):
        conversation("<think>hm", {"question": "hi", "reward_model": {"of": "said"}})


@pytest.mark.parametrize(
    ("metadata", "culprit"),
    [
        ({}, "metadata.question is missing"),
        ({"question": " "}, "metadata.question is missing"),
        ({"reward_model": {"messages": []}}, "a list of at least one message"),
        ({"reward_model": {"messages": [{"role": "user"}]}}, "a text `role` and a text `content`"),
        ({"question": "?", "reward_model": {"of": "half"}}, "metadata.reward_model.of"),
        ({"question": "?", "reward_model": {"off": "all"}}, "metadata.reward_model.off: no such parameter"),
        ({"question": "?", "reward_model": 3}, "must be an object"),
    ],
)
def test_a_task_that_says_it_badly_is_at_fault(metadata: dict[str, Any], culprit: str) -> None:
    with pytest.raises(BadTask, match=culprit):
        conversation("text", metadata)


def test_the_reward_is_a_sigmoid_that_never_leaves_its_range() -> None:
    assert squashed(3.0, 3.0, 2.0) == 0.5
    assert squashed(5.0, 3.0, 2.0) == pytest.approx(1 / (1 + 2.718281828**-1))
    assert (squashed(1e9, 0.0, 1.0), squashed(-1e9, 0.0, 1.0)) == (1.0, 0.0)


def test_a_checkpoint_without_a_scalar_head_or_a_template_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="its head has 2 labels, not 1"):
        RewardModel.load(RewardModelConfig(path=str(build(tmp_path / "two", labels=2)), device="cpu"))
    with pytest.raises(ValueError, match="has no chat template: give a Jinja file"):
        RewardModel.load(RewardModelConfig(path=str(build(tmp_path / "bare", template="")), device="cpu"))
    headless = tmp_path / "headless"
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    network.model.save_pretrained(headless)
    AutoTokenizer.from_pretrained(folder).save_pretrained(headless)
    with pytest.raises(ValueError, match=r"no trained head, the file lacks score\.weight"):
        RewardModel.load(RewardModelConfig(path=str(headless), device="cpu"))
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[-1].content }}")
    bare = RewardModelConfig(path=str(tmp_path / "bare"), device="cpu", chat_template=str(template))
    assert len(RewardModel.load(bare).encode(talk("four"))) == 4


# ------------------------------------------------------------ the service


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Verifier]:
    verifier = Verifier(f"reward_model.path={folder}", "reward_model.device=cpu", "reward_model.width=5", silence=300.0)
    yield verifier
    verifier.close()


def test_a_reward_model_is_mixed_with_rules_and_batched_over_what_waits(served: Verifier, model: RewardModel) -> None:
    texts = [f"<think>{word}</think><answer>92</answer>" for word in WORDS]
    jobs = {
        served.submit(text, "92", reward="0.5*format + reward_model", further={"question": "why?"}): text
        for text in texts
    }
    for number, verdict in [served.done() for _ in texts]:
        ((expected, *_),) = judge(model, [(jobs[number], {"question": "why?"})])
        assert expected is not None
        assert verdict.parts == {"format": 1.0, "reward_model": pytest.approx(expected, abs=1e-5)}
        assert verdict.reward == pytest.approx(0.5 + expected, abs=1e-5)
        assert "reward_model: score " in verdict.reason
    served.await_metrics(
        'verifier_check_seconds_count{reward="reward_model"} 8.0',
        'verifier_checks_total{outcome="scored",reward="reward_model"} 8.0',
        "verifier_model_batch_jobs_sum 8.0",
    )


def test_a_task_without_a_question_is_void_and_the_model_goes_on(served: Verifier) -> None:
    verdict = served.judge("x", "", reward="reward_model")
    assert verdict.void
    assert "metadata.question is missing" in verdict.reason
    assert not served.judge("x", "", reward="reward_model", further={"question": "?"}).void


def test_a_void_rule_spares_the_model_its_work(served: Verifier) -> None:
    verdict = served.judge("x", "", reward="accuracy * reward_model", further={"question": "?"})
    assert verdict.void
    assert "reward_model" not in verdict.reason


def test_a_model_that_dies_is_started_again_and_its_jobs_are_tried_again(served: Verifier) -> None:
    (process,) = [each for each in children(served.process.pid) if "verifier.scoring" in command_line(each)]
    os.kill(process, signal.SIGKILL)
    verdict = served.judge("x", "", reward="reward_model", further={"question": "?"}, seconds=60.0)
    assert not verdict.void, verdict
    assert [each for each in children(served.process.pid) if "verifier.scoring" in command_line(each)] != [process]


def test_without_a_model_its_reward_is_void_and_says_what_to_set(start_verifier: StartVerifier) -> None:
    verdict = start_verifier().judge("x", "", reward="reward_model", further={"question": "?"})
    assert verdict.void
    assert "reward_model.path=<folder of the checkpoint>" in verdict.reason


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["reward_model.path=/nowhere"], "reward_model.path=/nowhere: must be a folder with the config.json"),
        (["reward_model.batch_jobs=65"], "reward_model.batch_jobs=65: 64 at most"),
        (["reward_model.width=0"], "reward_model.width=0.0: must be above 0"),
        (["reward_model.device=tpu"], "reward_model.device=tpu: must be one of auto, cpu, cuda"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_in_a_sentence(options: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "verifier", "broker=tcp://127.0.0.1:9", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


# ------------------------------------------------------------ its process, played


PLAYED = """
import os, socket, sys, time
from verifier.channel import ChannelClosed, worker_receive, worker_send
end = socket.socket(fileno=int(sys.argv[2]))
worker_send(end, ["ready", "cpu"])
try:
    while True:
        jobs = worker_receive(end)
        text = jobs[0][0]
        if text == "die":
            os._exit(1)
        if text == "nonsense":
            worker_send(end, ["batch", [[2.0, "scored", "", 1]] * len(jobs), 0.1])
        elif len(jobs) > 2 and text == "slow":
            time.sleep(60)
        else:
            worker_send(end, ["batch", [[0.5, "scored", str(len(jobs)), 1]] * len(jobs), 0.1])
except ChannelClosed:
    pass
"""


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScorer]:
    monkeypatch.setattr("verifier.scoring.scorer._PYTHON", [sys.executable, "-c", PLAYED])
    scorer = ModelScorer(RewardModelConfig(path="played", batch_jobs=4))
    scorer.await_ready()
    yield scorer
    scorer.close()


def job(text: str, seconds: float = 10.0) -> VerifyJob:
    return VerifyJob(
        job_id=1,
        group_id=1,
        sample_index=0,
        text=text,
        reward="reward_model",
        reference="",
        metadata={},
        deadline_seconds=seconds,
    )


def finished(scorer: ModelScorer, count: int) -> dict[int, Checked]:
    limit, found = Deadline(20.0), dict[int, Checked]()
    while len(found) < count:
        assert not limit.passed
        found.update(scorer.turn())
        pause(0.002)
    return found


def test_what_waits_while_a_batch_is_judged_makes_the_next_one(scorer: ModelScorer) -> None:
    scorer.add(0, job("x"))
    scorer.turn()
    for key in range(1, 7):
        scorer.add(key, job("x"))
    assert [check.reason for _, check in sorted(finished(scorer, 7).items())] == ["1", *"4444", *"22"]


@pytest.mark.parametrize("text", ["die", "nonsense"])
def test_jobs_of_a_process_that_dies_or_lies_have_failed_and_the_next_are_judged(
    scorer: ModelScorer, text: str
) -> None:
    scorer.add(0, job(text))
    scorer.add(1, job("x"))
    assert {key: check.outcome for key, check in finished(scorer, 2).items()} == {0: "failed", 1: "failed"}
    scorer.add(2, job("x"))
    assert finished(scorer, 1)[2].value == 0.5


def test_a_batch_that_takes_too_long_is_ended_and_the_next_ones_are_half_as_large(scorer: ModelScorer) -> None:
    for key in range(4):
        scorer.add(key, job("slow", seconds=0.2))
    failed = finished(scorer, 4)
    assert {check.outcome for check in failed.values()} == {"failed"}
    assert "took longer than 0.2 s" in failed[0].reason
    assert scorer.fits == 2
    for key in range(4):
        scorer.add(key, job("slow", seconds=0.2))
    assert {check.outcome for check in finished(scorer, 4).values()} == {"scored"}


def test_a_process_that_never_gets_ready_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.scoring.scorer._PYTHON", [sys.executable, "-c", "raise SystemExit(3)"])
    scorer = ModelScorer(RewardModelConfig(path="played"))
    with pytest.raises(ValueError, match="ended while it loaded"):
        scorer.await_ready()
    with pytest.raises(PoolBroken, match=f"{FAILED_STARTS} times in a row"):
        finished(scorer, 1)
    scorer.close()
