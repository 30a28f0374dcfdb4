"""Reward `instructions`: rules about the form of a response that code can check, in the manner of IFEval.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models"; the rules are in `instruction_rules`.
"""

from collections.abc import Mapping
from typing import Any

from verifier.rewards.answer import CLOSE, OPEN, said, tagged
from verifier.rewards.instruction_rules import LANGUAGE_RULE, RULES
from verifier.rewards.parameters import Parameters
from verifier.rewards.score import BadAnswer, BadTask, Score

SCORES = ("all", "share")
OF = ("response", "all")


def instructions_reward(text: str, reference: str, metadata: Mapping[str, Any]) -> Score:
    """1 if every instruction of the task is followed, else 0; or, by choice, the share that is followed.

    `metadata` is that of an IFEval task: `instruction_id_list`, the names of the rules, and `kwargs`, the arguments of
    each. `metadata["instructions"]` may hold `score`, `all` (the default) or `share`, and `of`: `response` (the
    default: what follows the thinking, inside of the answer tags where there are any) or `all` of the text. Reads no
    `reference`.
    """
    options = Parameters.of(metadata, "instructions", ("score", "of"))
    rules = asked(metadata)
    share = options.choice("score", "all", SCORES) == "share"
    response = text if options.choice("of", "response", OF) == "all" else _response(text)
    for name, given in rules:
        RULES[name][0]("", given)  # bad arguments are the task's fault whatever the text says
    broken = [name for name, given in rules if not response.strip() or not RULES[name][0](response, given)]
    score = 1.0 - len(broken) / len(rules)
    reason = f"{len(rules) - len(broken)} of {len(rules)}{', not ' + ', '.join(broken) if broken else ''}"
    return Score(score if share else float(not broken), reason[:500])


def needs_language(metadata: Mapping[str, Any]) -> bool:
    """Whether a rule of the task tells languages apart."""
    names = metadata.get("instruction_id_list")
    return isinstance(names, list | tuple) and LANGUAGE_RULE in names


def asked(metadata: Mapping[str, Any]) -> list[tuple[str, Parameters]]:
    """The rules of the task and their arguments. Raises `BadTask`."""
    names = metadata.get("instruction_id_list")
    if not isinstance(names, list | tuple) or not names:
        raise BadTask("metadata.instruction_id_list must be a list of rules")
    arguments = metadata.get("kwargs", [{}] * len(names))
    if not isinstance(arguments, list | tuple) or len(arguments) != len(names):
        raise BadTask(f"metadata.kwargs must be a list of {len(names)} objects, one for each rule")
    rules = []
    for place, (name, given) in enumerate(zip(names, arguments, strict=True)):
        if not isinstance(name, str) or name not in RULES:
            raise BadTask(f"metadata.instruction_id_list: there is no rule {str(name)[:80]!r}")
        rules.append((name, Parameters(given or {}, f"metadata.kwargs[{place}]", RULES[name][1])))
    return rules


def _response(text: str) -> str:
    spoken = said(text)
    response = tagged(spoken) if OPEN in spoken or CLOSE in spoken else spoken
    if not response.strip():
        raise BadAnswer("the response is empty")
    return response.strip()
