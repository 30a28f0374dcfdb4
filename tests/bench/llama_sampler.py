"""A small llama that samples, in as few torch calls a token as can be: the actor of the forced-staleness runs.

A static cache, projections of one input stacked into one product, no padding (all prompts are equally long), rows that
have ended taken out of the batch. The tests hold its log-probabilities against the learner's.

Legend: Q prompts, G completions of each, B = Q·G rows, P prompt tokens, C = P + max_tokens places of the cache; A heads
of size D, H = A·D; I inner size of the MLP, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from learner.policy.linear import linear

ENDED_SHARE = 0.2  # rows that have ended are taken out once they are so many of the batch


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled for one prompt. The end token, where there is one, is part of it."""

    token_ids: np.ndarray[Any, np.dtype[np.int32]]  # [T]
    logprobs: np.ndarray[Any, np.dtype[np.float32]]  # [T] nats, of the sampled tokens
    ended: bool  # with the end token, not at the limit


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one decoder layer."""

    input_norm: torch.Tensor  # [H]
    query_key_value: torch.Tensor  # [3H, H]
    output: torch.Tensor  # [H, H]
    inner_norm: torch.Tensor  # [H]
    gate_up: torch.Tensor  # [2I, H]
    down: torch.Tensor  # [H, I]


def attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last T places, [B, A, T, D]; for one place by plain products, three times as fast."""
    if queries.shape[2] > 1:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True)
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5  # [B, A, 1, C]
    mixed: torch.Tensor = scores.softmax(-1) @ values
    return mixed


class LlamaSampler:
    """Samples at temperature 1 from the weights it was given last. Raises `ValueError` for what it cannot compute."""

    def __init__(self, config: Any, *, end: int) -> None:
        heads, rope = config.num_attention_heads, config.rope_parameters
        if config.model_type != "llama" or config.num_key_value_heads != heads or rope["rope_type"] != "default":
            raise ValueError("this sampler knows the plain llama: as many key as query heads, default rotary embedding")
        if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
            raise ValueError("this sampler knows the plain llama: no biases, SiLU")
        self.config, self.end = config, end
        self.heads, self.size = heads, config.head_dim
        frequencies = rope["rope_theta"] ** (-torch.arange(0, self.size, 2).float() / self.size)  # [D/2]
        angles = torch.arange(config.max_position_embeddings).float()[:, None] * frequencies  # [max, D/2]
        self.cos, self.sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))  # [max, D]
        self.layers: list[Layer] = []

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the weights of a version, by their HF names."""

        def stacked(layer: str, *names: str) -> torch.Tensor:
            return torch.cat([state[f"{layer}.{name}.weight"] for name in names])

        names = [f"model.layers.{index}" for index in range(self.config.num_hidden_layers)]
        self.layers = [
            Layer(
                input_norm=state[f"{name}.input_layernorm.weight"],
                query_key_value=stacked(f"{name}.self_attn", "q_proj", "k_proj", "v_proj"),
                output=state[f"{name}.self_attn.o_proj.weight"],
                inner_norm=state[f"{name}.post_attention_layernorm.weight"],
                gate_up=stacked(f"{name}.mlp", "gate_proj", "up_proj"),
                down=state[f"{name}.mlp.down_proj.weight"],
            )
            for name in names
        ]
        self.embedding, self.norm = state["model.embed_tokens.weight"], state["model.norm.weight"]
        self.head = state["lm_head.weight"]

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Sequence[int]], group_size: int, *, max_tokens: int, generator: torch.Generator
    ) -> list[Completion]:
        """`group_size` completions of each prompt, those of one prompt next to each other."""
        if len({len(prompt) for prompt in prompts}) != 1:
            raise ValueError("this sampler pads nothing: all prompts of a batch must be equally long")
        asked = torch.tensor(prompts)  # [Q, P]
        (questions, start), rows = asked.shape, len(prompts) * group_size
        shape = (self.heads, start + max_tokens, self.size)
        caches = [torch.zeros(2, questions, *shape) for _ in self.layers]  # keys and values, [2, Q, A, C, D] each
        logits = self._forward(asked, 0, caches)[:, -1]  # [Q, V]
        caches = [cache.repeat_interleave(group_size, dim=1) for cache in caches]  # [2, B, A, C, D]
        logits = logits.repeat_interleave(group_size, dim=0)  # [B, V]
        tokens = torch.full((rows, max_tokens), -1)
        chosen = torch.zeros(rows, max_tokens)
        running = torch.arange(rows)  # which rows are in the batch
        for place in range(max_tokens):
            logprobs = logits.log_softmax(-1)
            noise = torch.empty_like(logprobs).exponential_(generator=generator)
            sampled = (logprobs.exp() / noise).argmax(-1)  # the exponential race: token i wins with probability p_i
            going = tokens[running, place - 1] != self.end if place else torch.ones(rows, dtype=torch.bool)
            tokens[running, place] = torch.where(going, sampled, self.end)
            chosen[running, place] = logprobs.gather(-1, sampled[:, None]).squeeze(-1)
            left = going & (sampled != self.end)
            if not left.any() or place == max_tokens - 1:
                break
            if left.sum() < (1 - ENDED_SHARE) * len(running):
                caches = [cache[:, left] for cache in caches]
                running, sampled = running[left], sampled[left]
            logits = self._forward(sampled[:, None], start + place, caches)[:, -1]
        return self._cut(tokens.numpy(), chosen.numpy(), max_tokens)

    def _cut(self, tokens: np.ndarray[Any, Any], logprobs: np.ndarray[Any, Any], max_tokens: int) -> list[Completion]:
        """Each row up to its end token or the limit."""
        ends = tokens == self.end
        lengths = np.where(ends.any(-1), ends.argmax(-1) + 1, max_tokens)
        return [
            Completion(row[:length].astype(np.int32), chosen[:length], bool(row[length - 1] == self.end))
            for row, chosen, length in zip(tokens, logprobs, lengths, strict=True)
        ]

    def _forward(self, ids: torch.Tensor, start: int, caches: list[torch.Tensor]) -> torch.Tensor:
        """Logits [B, T, V] of `ids` [B, T] at the places from `start`; fills the caches [2, B, A, C, D] there."""
        (rows, length), eps = ids.shape, self.config.rms_norm_eps
        places = slice(start, start + length)
        cos, sin = self.cos[places, None], self.sin[places, None]  # [T, 1, D]
        hidden = self.embedding[ids]  # [B, T, H]
        for layer, cache in zip(self.layers, caches, strict=True):
            normed = rms_norm(hidden, layer.input_norm.shape, layer.input_norm, eps)
            heads = linear(normed, layer.query_key_value).view(rows, length, 3 * self.heads, self.size)
            turned, values = heads[:, :, : 2 * self.heads], heads[:, :, 2 * self.heads :]
            halves = torch.cat([-turned[..., self.size // 2 :], turned[..., : self.size // 2]], -1)
            turned = turned * cos + halves * sin  # [B, T, 2A, D]
            cache[0, :, :, places] = turned[:, :, self.heads :].transpose(1, 2)
            cache[1, :, :, places] = values.transpose(1, 2)
            seen = cache[:, :, :, : places.stop]
            queries = turned[:, :, : self.heads].transpose(1, 2)  # [B, A, T, D]
            mixed = attention(queries, seen[0], seen[1])
            hidden = hidden + linear(mixed.transpose(1, 2).flatten(2), layer.output)
            normed = rms_norm(hidden, layer.inner_norm.shape, layer.inner_norm, eps)
            gate, up = linear(normed, layer.gate_up).chunk(2, -1)
            hidden = hidden + linear(silu(gate) * up, layer.down)
        last = rms_norm(hidden, self.norm.shape, self.norm, eps)
        return linear(last, self.head)
