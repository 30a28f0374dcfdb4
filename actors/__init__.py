"""Actors: vLLM engines that sample leased groups with stale weights and swap them between two decode steps."""
