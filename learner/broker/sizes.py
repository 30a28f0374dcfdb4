"""How many bytes a message may have, by who sends it: to decode a large one takes time and memory. Pure."""

STRANGER = 256 * 2**10  # a Hello that names thousands of leases
VERIFIER = 2**20  # verdicts
LEARNER = 64 * 2**20  # the manifest of a model of some hundred thousand tensors
PROMPT = 2**20  # and everything in a rollout that does not grow with the completion
TOKEN = 4 + 4 + 256  # its id, its logprob, its text: more than any tokenizer's longest token that fills a completion


def largest(max_tokens: int) -> dict[str, int]:
    """Bytes of a message by role, "" for whoever did not say Hello; completions have `max_tokens` tokens at most."""
    return {"": STRANGER, "verifier": VERIFIER, "actor": PROMPT + TOKEN * max_tokens, "learner": LEARNER}
