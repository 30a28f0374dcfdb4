"""vLLM, driven step by step in this process: the only file that imports it. `actors.environment.prepare` comes first.

A weight swap happens between two steps, never inside one, so that vLLM's own record of which version sampled which
token is exact (`async_scheduling` is off for the same reason). What becomes of the KV cache at a swap is
`kv_on_update`:

* `recompute`: requests in flight lose their KV and get it anew from the new weights, in their next step; the tokens
  that they have stay. Every logprob is then exactly that of its version.
* `keep`: requests in flight go on with the KV that older weights made. The cache salt of a request is the version that
  it was added under, so that no new request is ever served a prefix of older weights.

Array legend: T completion tokens of one request, P prompt tokens, S bytes of one tensor.
"""

import gc
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.checkpoint import Checkpoint
from actors.config import EngineConfig
from actors.requests import Bytes, EngineFailure, Finished, ImpossiblePrompt, Tensors
from protocol.messages import Sampling, TensorSpec, VersionSpan
from protocol.segments import Mappings, Place, place_of, read_file

_collecting = gc.isenabled()
gc.disable()  # importing makes a million objects and no garbage; looking for it costs a third of the start
from vllm import EngineArgs, LLMEngine, SamplingParams  # noqa: E402
from vllm.inputs.engine import tokens_input  # noqa: E402
from vllm.model_executor.model_loader.reload import (  # noqa: E402
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.models import ModelRegistry  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402

gc.freeze()  # vLLM collects garbage several times while it starts: what was imported need not be looked at
if _collecting:
    gc.enable()


_mappings = Mappings()  # of a worker's process


class WeightLoader:
    """Runs inside vLLM's workers (`worker_extension_cls`)."""

    model_runner: Any  # the worker's own

    def load_places(self, places: list[tuple[TensorSpec, Place]]) -> list[str]:
        """As `load_version`, of a version that lies in shared memory: tensors do not go through vLLM's own pipes."""
        files = {path: read_file(path, _mappings) for path in {place.path for _, place in places}}
        views = [
            (spec.name, _torch_view(spec, files[place.path][place.offset : place.offset + spec.nbytes]))
            for spec, place in places
        ]
        return self.load_version(views)

    def load_version(self, tensors: list[tuple[str, torch.Tensor]]) -> list[str]:
        """Load a version given by HF names; the names of vLLM's parameters that it left as they were.

        A plain `model.load_weights` would not do: on the CPU the weights in use are packed copies.
        """
        model = self.model_runner.get_model()
        wanted = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # a tied lm_head counts
        initialize_layerwise_reload(model)
        loaded = model.load_weights(iter(tensors))
        finalize_layerwise_reload(model, self.model_runner.model_config)
        return sorted(wanted - loaded)


class VllmEngine:
    """`actors.requests.Engine` on vLLM. It has random weights, and samples nothing, until the first `load`."""

    def __init__(self, model: str, config: EngineConfig, sampling: Sampling, *, kv_on_update: str) -> None:
        """Start vLLM for the HF directory `model`. Raises `EngineFailure` with the cure for what does not fit."""
        self.sampling = sampling
        self.kv_on_update = kv_on_update
        self.version: int | None = None
        self._weights = ""  # version/fingerprint: as vLLM writes down which weights sampled which token
        self._requests: dict[str, _Request] = {}
        self._ended_tokens = 0
        self._workers = config.tensor_parallel_size
        checkpoint = Checkpoint(Path(model))
        checkpoint.demand_plain_weights()
        self._stop_ids = checkpoint.stop_ids
        try:
            with warnings.catch_warnings(action="ignore"):  # they are about vLLM's own imports
                self._llm = LLMEngine.from_engine_args(_engine_args(checkpoint, config))
        except (ValueError, OSError) as error:
            raise EngineFailure(
                f"vLLM cannot start for model={model}: {error}; what must fit is decided by engine.max_model_len, "
                "engine.kv_cache_bytes (CPU) and engine.gpu_memory_utilization (GPU)"
            ) from error
        self._tokenizer = self._llm.get_tokenizer()
        self._scheduler = self._llm.engine_core.engine_core.scheduler
        self.max_model_len = int(self._llm.model_config.max_model_len)
        self.vocabulary = int(self._llm.model_config.get_vocab_size())

    # ------------------------------------------------------------ text

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, nothing added: templates are applied already. Raises `ImpossiblePrompt`."""
        try:
            token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:
            if type(error) is Exception:  # what the tokenizers library raises
                raise ImpossiblePrompt("prompt_not_tokenisable", str(error)) from error
            raise
        unknown = self._tokenizer.unk_token_id
        if unknown is not None and unknown in token_ids:
            raise ImpossiblePrompt("prompt_not_tokenisable", "it holds characters that the tokenizer does not know")
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a completion without special tokens."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    # ------------------------------------------------------------ requests

    def add(self, request_id: str, prompt_ids: Sequence[int], seed: int) -> None:
        """Begin to sample one completion. Raises `ImpossiblePrompt` when it does not fit."""
        if not prompt_ids:
            raise ImpossiblePrompt("prompt_empty", "it has no tokens")
        if len(prompt_ids) >= self.max_model_len:
            raise ImpossiblePrompt(
                "prompt_too_long", f"{len(prompt_ids)} tokens leave no room in a context of {self.max_model_len}"
            )
        if max(prompt_ids) >= self.vocabulary:
            raise ImpossiblePrompt(
                "prompt_not_tokenisable",
                f"token {max(prompt_ids)} is not in the model's vocabulary of {self.vocabulary}",
            )
        self._requests[request_id] = _Request(list(prompt_ids), seed)
        self._submit(request_id)

    def _submit(self, request_id: str) -> None:
        request, sampling = self._requests[request_id], self.sampling
        salt = self._weights if self.kv_on_update == "keep" else None
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop),
            stop_token_ids=self._stop_ids,
            seed=request.seed,
            logprobs=0,  # the sampled token's
            flat_logprobs=True,
            detokenize=bool(sampling.stop),  # texts that end a completion are looked for in text
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = tokens_input(request.prompt_ids, cache_salt=salt)
        request.internal_id = self._llm.add_request(request_id, prompt, parameters)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests."""
        ids = list(request_ids)
        for request_id in ids:
            self._ended_tokens += self._sampled(self._requests.pop(request_id))
        self._llm.abort_request(ids)

    def step(self) -> list[Finished]:
        """Sample one token for every request that has a place in the batch."""
        return [self._finished(output) for output in self._llm.step() if output.finished]

    def _finished(self, output: Any) -> Finished:
        completion = output.outputs[0]
        token_ids = np.array(completion.token_ids, dtype=np.int32)  # [T]
        behaviour_logprobs = np.array(completion.logprobs.logprobs, dtype=np.float32)  # [T]
        assert completion.logprobs.token_ids == list(completion.token_ids), "one logprob a token: the sampled one's"
        del self._requests[output.request_id]
        self._ended_tokens += len(token_ids)
        return Finished(
            request_id=output.request_id,
            token_ids=token_ids,
            behaviour_logprobs=behaviour_logprobs,
            version_spans=tuple(_span(span.version, span.end - span.start) for span in completion.weight_versions),
            finish_reason=completion.finish_reason,
        )

    # ------------------------------------------------------------ weights

    def load(self, version: int, fingerprint: str, tensors: Tensors) -> None:
        """Sample from `version` from the next step on. Raises `EngineFailure` when tensors are missing."""
        for missing in self._load(list(tensors)):
            if missing:
                raise EngineFailure(
                    f"version {version} lacks the weights of {', '.join(missing[:5])}: the learner must publish every "
                    "tensor of the model, lm_head.weight included when it is tied"
                )
        self._weights = f"{version}/{fingerprint}"
        self._llm.set_weight_version(self._weights)
        self.version = version
        if self.kv_on_update == "recompute":
            self._llm.reset_prefix_cache(reset_running_requests=True)
        else:
            self._resubmit_waiting()

    def _load(self, tensors: list[tuple[TensorSpec, Bytes]]) -> list[list[str]]:
        """Load into every worker; what each of them misses."""
        places = [(spec, place) for spec, data in tensors if (place := place_of(data))] if self._workers > 1 else []
        if places and len(places) == len(tensors):
            missing: list[list[str]] = self._llm.collective_rpc("load_places", args=(places,))
        else:
            views = [(spec.name, _torch_view(spec, data)) for spec, data in tensors]
            missing = self._llm.collective_rpc("load_version", args=(views,))
        return missing

    def _resubmit_waiting(self) -> None:
        """Requests without a token so far have no KV to keep: they belong to the new version."""
        untouched = [name for name, request in self._requests.items() if not self._sampled(request)]
        self._llm.abort_request(untouched)
        for request_id in untouched:
            self._submit(request_id)

    # ------------------------------------------------------------ how it stands

    @property
    def running(self) -> int:
        """Requests that the next step decodes."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests that have no place in the batch yet."""
        return len(self._requests) - self.running

    @property
    def generated_tokens(self) -> int:
        """Completion tokens sampled since the start."""
        return self._ended_tokens + sum(self._sampled(request) for request in self._requests.values())

    @property
    def kv_used(self) -> float:
        """Share of the KV cache in use, 0..1."""
        return float(self._scheduler.kv_cache_manager.usage)

    def _sampled(self, request: "_Request") -> int:
        state = self._llm.output_processor.request_states[request.internal_id]
        return int(state.detokenizer.num_output_tokens())

    def close(self) -> None:
        """End vLLM's workers."""
        self._llm.engine_core.shutdown()


class _Request:
    """One completion in flight; `internal_id` is vLLM's name for it."""

    __slots__ = ("internal_id", "prompt_ids", "seed")

    def __init__(self, prompt_ids: list[int], seed: int) -> None:
        self.prompt_ids = prompt_ids  # [P]
        self.seed = seed
        self.internal_id = ""


def _span(weights: str, tokens: int) -> VersionSpan:
    version, _, fingerprint = weights.partition("/")
    return VersionSpan(version=int(version), tokens=tokens, fingerprint=fingerprint)


def _torch_view(spec: TensorSpec, data: Bytes) -> torch.Tensor:
    """The tensor whose bytes are `data`, [S] uint8; a copy only where they are not aligned."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    aligned = data if data.ctypes.data % dtype.itemsize == 0 else data.copy()
    return torch.from_numpy(aligned).view(dtype).reshape(spec.shape)


def _engine_args(checkpoint: Checkpoint, config: EngineConfig) -> EngineArgs:
    on_cpu = current_platform.is_cpu()
    if on_cpu and not config.enforce_eager:
        raise EngineFailure("engine.enforce_eager=false: CUDA graphs need a GPU, and this vLLM is built for the CPU")
    if config.tensor_parallel_size == 1:
        _register(checkpoint.architectures)
    return EngineArgs(
        model=str(checkpoint.directory),
        load_format="dummy",  # every version comes from the learner, the first one too
        dtype=checkpoint.dtype if config.dtype == "auto" else config.dtype,
        # vLLM then multiplies by the weights as they are at each step: updates need nothing more.
        hf_overrides={"head_dtype": "float32"} if config.fp32_head else {},
        max_model_len=config.max_model_len or None,
        max_num_seqs=config.max_num_seqs,
        tensor_parallel_size=config.tensor_parallel_size,
        distributed_executor_backend="uni" if config.tensor_parallel_size == 1 else "mp",
        enforce_eager=config.enforce_eager,
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        async_scheduling=False,
        enable_prefix_caching=True,
        # A prompt in pieces makes vLLM rewind the seeded generator, which a CPU generator cannot.
        enable_chunked_prefill=False if on_cpu else None,
        kv_cache_memory_bytes=config.kv_cache_bytes if on_cpu else None,
        gpu_memory_utilization=config.gpu_memory_utilization,
        worker_extension_cls=f"{WeightLoader.__module__}.{WeightLoader.__qualname__}",
        disable_log_stats=True,
        seed=0,
    )


def _register(architectures: Sequence[str]) -> None:
    """Import the model's class here: else vLLM looks at it in a process of its own first, which takes 8 s."""
    for name in architectures:
        if (known := ModelRegistry.models.get(name)) is not None:
            ModelRegistry.register_model(name, known.load_model_cls())
