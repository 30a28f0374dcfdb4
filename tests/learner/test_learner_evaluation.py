"""The figure that says how good the cold start is: judged by hand."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learner import addition, evaluation
from learner.addition import Fault
from learner.evaluation import judge


@pytest.mark.parametrize(
    ("completion", "right", "well_formed"),
    [
        ("<think>3+9+0=12;3+5+1=9</think><answer>92</answer>", True, True),
        ("<think>3+9+0=12;3+5+0=8</think><answer>82</answer>", False, True),
        ("<answer>92</answer>", True, False),
        ("<think>3+9+0=12;3+5+1=9</think>92", False, False),
        ("<think>x</think><answer>92</answer>9", True, False),
        ("<think>x</think><answer>92", False, False),
        ("<think></think><think></think><answer>92</answer>", True, False),
        ("", False, False),
    ],
)
def test_an_answer_and_its_form_are_judged_apart(completion: str, right: bool, well_formed: bool) -> None:
    assert judge(33, 59, completion) == (right, well_formed)


def test_right_traces_are_right_and_faulty_ones_are_what_their_fault_says() -> None:
    chance = random.Random(0)
    for _ in range(200):
        a, b = addition.operands(chance, 3)
        assert judge(a, b, addition.completion(a, b)) == (True, True)
        carries = addition.completion(a, b) != addition.completion(a, b, carrying=False)
        assert judge(a, b, addition.faulty_completion(a, b, Fault.NO_CARRY, chance)) == (not carries, True)
        assert judge(a, b, addition.faulty_completion(a, b, Fault.NO_TAGS, chance)) == (False, False)
        assert judge(a, b, addition.faulty_completion(a, b, Fault.GUESS, chance))[1] is False


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_only_held_out_problems_are_asked(digits: int) -> None:
    asked = evaluation.held_out_problems(50, digits, seed=0)
    assert len(asked) == 50
    assert all(addition.held_out(a, b) for a, b in asked)
    assert asked == evaluation.held_out_problems(50, digits, seed=0)


def test_a_random_model_scores_nothing_and_sampling_leaves_the_random_state_alone(
    model_directory: Callable[[str, bool], Path],
) -> None:
    before = torch.random.get_rng_state()
    score = evaluation.addition_score(
        model_directory("llama", True), problems=3, digits=2, seed=0, device=torch.device("cpu")
    )
    assert (score.problems, score.accuracy, score.format, score.reward) == (3, 0.0, 0.0, 0.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_prompts_sampled_together_are_equally_long_and_none_is_lost() -> None:
    prompts = [(n, n, [0] * (1 + n % 3)) for n in range(500)]
    batches = list(evaluation.alike(prompts))
    assert sorted(item for batch in batches for item in batch) == sorted(prompts)
    assert all(len({len(ids) for _, _, ids in batch}) == 1 for batch in batches)
    assert max(map(len, batches)) == evaluation.BATCH
