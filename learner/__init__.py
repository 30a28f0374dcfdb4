"""Learner: receive, advantage, pack, loss, step, publish; and, as a process of its own, the broker."""
