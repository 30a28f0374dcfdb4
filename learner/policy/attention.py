"""Attention over packed sequences, which never see each other, as transformers' attention function `offbeat_packed`.

A micro-batch is one row of M tokens, its sequences one after the other without padding. `Packing` says where they
start; a model hands it on to its attention as the keyword `packing`. On CUDA, in half precision, torch's varlen kernel
does the work; elsewhere sequences of similar length become the rows of a padded rectangle. There padding stands on the
right, so that a causal token never sees it.

transformers builds a mask only for implementations of which it knows one, so none of [M, M] is ever made for this one.
What a model asks of its attention and this function lacks is refused, never ignored.

Legend: M packed tokens, S sequences, H heads of queries, K heads of keys and values, D head size, E hidden size; R rows
of a run, L their padded length.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

NAME = "offbeat_packed"
SIMILAR = 0.75  # a run holds sequences at least this long, relative to its longest
KERNEL_HEAD_SIZE = 256  # the largest that the varlen kernel takes, in steps of 8
KERNEL_SHARES_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # since torch 2.12
ROUNDING = 1e-4  # of the largest hidden state: less is the order of float32 sums, 1e-6 as a rule; a leak is 1e-2
HARMLESS = {"position_ids", "cache_position"}  # keywords of a layer that arrive here and ask nothing of attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring sequences of similar length as the rows of a padded rectangle [R, L]."""

    tokens: int  # of all its sequences
    rows: int  # R
    length: int  # L, of the longest
    source: torch.Tensor | None  # [R·L] int64 into its tokens, padding repeats the last of a row; None: no padding
    places: torch.Tensor | None  # [tokens] int64 into [R·L]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where the sequences of a packed row begin and end."""

    starts: torch.Tensor  # [S + 1] int32: the first token of each sequence, then M
    longest: int  # tokens of the longest sequence
    runs: tuple[Run, ...]  # all sequences in their order, for attention without the kernel


def pack(lengths: Sequence[int], device: torch.device) -> Packing:
    """The packing of sequences of these `lengths`, each at least 1. Alike ones are best kept side by side."""
    starts = np.cumsum([0, *lengths], dtype=np.int32)
    return Packing(
        starts=torch.tensor(starts, device=device),
        longest=max(lengths),
        runs=tuple(run_of(similar, device) for similar in alike(lengths)),
    )


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Neighbouring lengths cut where they differ too much to share a rectangle."""
    runs: list[list[int]] = []
    for length in lengths:
        if runs and min(length, *runs[-1]) >= SIMILAR * max(length, *runs[-1]):
            runs[-1].append(length)
        else:
            runs.append([length])
    return runs


def run_of(lengths: Sequence[int], device: torch.device) -> Run:
    """The rectangle of sequences of these lengths."""
    each = np.array(lengths, dtype=np.int64)  # [R]
    longest, tokens = int(each.max()), int(each.sum())
    if tokens == longest * len(each):
        return Run(tokens=tokens, rows=len(each), length=longest, source=None, places=None)
    columns = np.arange(longest)  # [L]
    starts = np.cumsum(each) - each  # [R]
    source = starts[:, None] + np.minimum(columns, each[:, None] - 1)  # [R, L]
    places = np.flatnonzero(columns < each[:, None])  # [tokens]
    return Run(
        tokens=tokens,
        rows=len(each),
        length=longest,
        source=torch.tensor(source.ravel(), device=device),
        places=torch.tensor(places, device=device),
    )


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,  # [1, H, M, D]
    key: torch.Tensor,  # [1, K, M, D]
    value: torch.Tensor,  # [1, K, M, D]
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of `packing`, [1, M, H, D].

    Raises `ValueError` when the model asks for another attention: one that is not causal, drops out, or has a keyword
    that is unknown here. A sliding window is known: each token sees `sliding_window` tokens, the last of them itself.
    """
    if packing is None or len(query) != 1:
        raise ValueError(f"{named(module)}: attention {NAME} works on one packed row, with the keyword `packing`")
    window = window_of(module, keywords, packing.longest)
    refuse(module, {"attention_mask": attention_mask, **keywords})
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # [M, H or K, D]
    attend = by_kernel if kernel_takes(query, key, value) else by_rectangles
    return attend(query, key, value, packing, scaling, window).unsqueeze(0), None


def window_of(module: nn.Module, keywords: dict[str, Any], longest: int) -> int | None:
    """The sliding window where it is shorter than the longest sequence, taken out of the keywords."""
    declared = getattr(getattr(module, "config", None), "sliding_window", None)
    if "sliding_window" not in keywords and declared is not None and longest > declared:
        raise ValueError(
            f"{named(module)}: declares sliding_window={declared} and does not tell its attention; sequences must not "
            f"be longer, one has {longest} tokens"
        )
    window: int | None = keywords.pop("sliding_window", None)
    return window if window is not None and window < longest else None


def refuse(module: nn.Module, keywords: dict[str, Any]) -> None:
    """Raise `ValueError` at the first keyword that asks for what this attention does not do."""
    causal = keywords.pop("is_causal", None)
    if causal is False or (causal is None and not getattr(module, "is_causal", True)):
        raise ValueError(f"{named(module)}: is_causal=False: packed sequences are trained with causal attention only")
    if dropout := keywords.pop("dropout", 0.0):
        raise ValueError(f"{named(module)}: dropout={dropout} of attention: must be 0, the sampler has none")
    for name, asked in keywords.items():
        if name not in HARMLESS and asked is not None and asked is not False:
            said = type(asked).__name__ if isinstance(asked, torch.Tensor) else repr(asked)
            raise ValueError(f"{named(module)}: attention keyword {name}={said} is not known to packed attention")


def named(module: nn.Module) -> str:
    """What a module's model is called."""
    return str(getattr(getattr(module, "config", None), "model_type", type(module).__name__))


def kernel_takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch's varlen kernel can work on these."""
    size = query.shape[-1]
    fits = size == key.shape[-1] == value.shape[-1] and size <= KERNEL_HEAD_SIZE and size % 8 == 0
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and fits


def by_kernel(
    query: torch.Tensor,  # [M, H, D]
    key: torch.Tensor,  # [M, K, D]
    value: torch.Tensor,  # [M, K, D]
    packing: Packing,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attention [M, H, D] by torch's varlen kernel."""
    options: dict[str, Any] = {}
    shared = query.shape[1] // key.shape[1]
    if shared > 1 and KERNEL_SHARES_HEADS:
        options["enable_gqa"] = True
    elif shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    attended = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        packing.starts,
        packing.starts,
        packing.longest,
        packing.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # tokens before, and after, each token
        **options,
    )
    assert isinstance(attended, torch.Tensor)  # no auxiliary outputs were asked for
    return attended


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its shapes are new in each micro-batch
def by_rectangles(
    query: torch.Tensor,  # [M, H, D]
    key: torch.Tensor,  # [M, K, D]
    value: torch.Tensor,  # [M, K, D]
    packing: Packing,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attention [M, H, D] run by run, each as a padded rectangle."""
    if len(packing.runs) == 1:  # without the copies of cutting and joining
        return attend_run(packing.runs[0], [query, key, value], scaling, window)
    sizes = [run.tokens for run in packing.runs]
    parts = zip(packing.runs, *(torch.split(states, sizes) for states in (query, key, value)), strict=True)
    return torch.cat([attend_run(run, states, scaling, window) for run, *states in parts])


def attend_run(run: Run, packed: list[torch.Tensor], scaling: float | None, window: int | None) -> torch.Tensor:
    """Attention [tokens, H, D] within the rows of one rectangle; `packed` are its queries, keys and values."""
    query, key, value = (  # [R, H, L, D], [R, K, L, D] twice
        (states if run.source is None else states.index_select(0, run.source))
        .reshape(run.rows, run.length, *states.shape[1:])
        .transpose(1, 2)
        for states in packed
    )
    shared = query.shape[1] // key.shape[1]
    if shared > 1 and query.is_cuda:  # of its kernels for float32 none shares heads, and all pairs would be in memory
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    mask = None
    if window is not None and window < run.length:
        ones = torch.ones(run.length, run.length, dtype=torch.bool, device=query.device)
        mask = ones.tril().triu(1 - window)  # [L, L], True where a token sees another
    attended = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    rows = attended.transpose(1, 2).flatten(0, 1)  # [R·L, H, D]
    return rows if run.places is None else rows.index_select(0, run.places)


def check_packable(network: PreTrainedModel) -> None:
    """Try whether packed sequences keep apart in `network`, loaded with the attention `NAME`.

    Raises `ValueError` where a layer asks its attention for what it lacks, has a mask of another shape, or mixes
    tokens by other means than attention (convolutions, recurrent states).
    """
    described = network.config.get_text_config()
    if strange := set(getattr(described, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"{described.model_type}: layers of {', '.join(sorted(strange))} cannot be trained packed")
    alone, packed = (hidden_states(network, sequences) for sequences in ([[0, 1]], [[2, 3], [0, 1]]))
    if not torch.allclose(alone, packed[2:], rtol=0, atol=ROUNDING * float(alone.abs().max()), equal_nan=True):
        raise ValueError(f"{described.model_type}: packed sequences see each other in some layer, it cannot be trained")


@torch.no_grad()
def hidden_states(network: PreTrainedModel, sequences: list[list[int]]) -> torch.Tensor:
    """The last hidden states [M, E] of packed sequences of token ids."""
    lengths = [len(sequence) for sequence in sequences]
    states: torch.Tensor = network.base_model(
        input_ids=torch.tensor([list(chain(*sequences))], device=network.device),
        position_ids=torch.tensor([list(chain(*map(range, lengths)))], device=network.device),
        packing=pack(lengths, network.device),
        use_cache=False,
    ).last_hidden_state
    return states[0]


def check_lengths(described: PretrainedConfig, packing: Packing) -> None:
    """Raise `ValueError` where the rotary frequencies of all sequences would follow the longest among them."""
    rotary = getattr(described, "rope_parameters", None) or {}
    for each in (rotary, *rotary.values()):  # one for all layers, or one a type of layer
        kind = each.get("rope_type") if isinstance(each, dict) else None
        if kind not in ("dynamic", "longrope"):
            continue
        bound = each.get("original_max_position_embeddings") or described.max_position_embeddings
        if packing.longest > bound:
            raise ValueError(
                f"{described.model_type}: {kind} positions depend on the company of a sequence beyond {bound} tokens, "
                f"one has {packing.longest}; sample fewer"
            )


AttentionInterface.register(NAME, packed_attention)
