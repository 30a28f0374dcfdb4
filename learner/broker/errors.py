"""What a peer may not say."""


class InvalidEvent(Exception):
    """A peer reported what cannot be; nothing has changed. `field` names what is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
