"""Reward `reward_model`: a scalar head over a whole conversation, in a process of its own that judges in batches."""
