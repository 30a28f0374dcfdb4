"""What a reward model is shown of a job."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from verifier.rewards.answer import said
from verifier.rewards.parameters import Parameters
from verifier.rewards.score import BadTask

Conversation: TypeAlias = list[dict[str, str]]
"""Messages of `role` and `content`; the last one is the completion, by the assistant."""

OF = ("all", "said")


def conversation(text: str, metadata: Mapping[str, Any]) -> Conversation:
    """What came before the completion, and the completion.

    `metadata["reward_model"]` may hold `messages`, a list of `{"role": …, "content": …}` that precede it, and `of`:
    `all` of the completion (the default) or what is `said` after the thinking, as DeepSeek-R1 judges helpfulness.
    Without `messages` the question is `metadata["question"]`. Raises `BadTask`, and `BadAnswer` where nothing is said.
    """
    options = Parameters.of(metadata, "reward_model", ("messages", "of"))
    before = _messages(metadata)
    content = said(text).strip() if options.choice("of", "all", OF) == "said" else text
    return [*before, {"role": "assistant", "content": content}]


def _messages(metadata: Mapping[str, Any]) -> Conversation:
    given = metadata.get("reward_model", {}).get("messages")
    if given is None:
        if not isinstance(question := metadata.get("question"), str) or not question.strip():
            raise BadTask(
                "metadata.question is missing: the text that the completion answers; or give the messages "
                "before it as metadata.reward_model.messages"
            )
        return [{"role": "user", "content": question}]
    if not isinstance(given, list) or not given:
        raise BadTask("metadata.reward_model.messages must be a list of at least one message")
    for message in given:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise BadTask("metadata.reward_model.messages: each must have a text `role` and a text `content`")
    return [{"role": message["role"], "content": message["content"]} for message in given]
