"""Every message that crosses a socket, grouped by who sends it to whom.

Array legend: T completion tokens of one rollout, P prompt tokens, S bytes of one weight shard.
A message is small, immutable and checked field by field when it is decoded (`protocol.codec`) and, for what spans
several fields, in `__post_init__`; both raise `MalformedMessage` with the name of the field.
`PROTOCOL_VERSION` rises with every change of meaning or shape: peers of another version are refused.

Messages with a `seq` must arrive: their sender keeps them until an `Ack` of that number and sends them again to a
broker that came back (`protocol.line`). The broker knows a second copy by the ids in it.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np

from protocol.errors import MalformedMessage
from protocol.fields import Array, Json, MaxLength, Range

PROTOCOL_VERSION = 4

Count: TypeAlias = Annotated[int, Range(0, 2**63 - 1)]
Positive: TypeAlias = Annotated[int, Range(1, 2**31 - 1)]
Version: TypeAlias = Annotated[int, Range(0, 2**31 - 1)]
Seconds: TypeAlias = Annotated[float, Range(0.0, 1e9)]
Name: TypeAlias = Annotated[str, MaxLength(256)]
Text: TypeAlias = Annotated[str, MaxLength(4 * 2**20)]
Fingerprint: TypeAlias = Annotated[str, MaxLength(64)]
JsonObject: TypeAlias = Annotated[dict[str, Any], Json(max_depth=16)]
TokenIds: TypeAlias = Annotated[np.ndarray[Any, np.dtype[np.int32]], Array("int32", 1)]
Logprobs: TypeAlias = Annotated[np.ndarray[Any, np.dtype[np.float32]], Array("float32", 1)]
MOST_PADDING = 64  # bytes between two tensors of a version, so that each can begin at a multiple of this

RawBytes: TypeAlias = Annotated[np.ndarray[Any, np.dtype[np.uint8]], Array("uint8", 1)]

Role: TypeAlias = Literal["learner", "actor", "verifier"]
FinishReason: TypeAlias = Literal["stop", "length"]


# ---------------------------------------------------------------- values that travel inside messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A prompt, the reward that judges a completion, and what the reward compares with."""

    task_id: Name
    prompt: Text  # as the model reads it, template already applied
    reward: Name  # a reward expression, e.g. "0.5*accuracy + 0.5*format"
    reference: Text
    metadata: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How every completion of a run is sampled. The learner applies the same temperature to its logprobs."""

    temperature: Annotated[float, Range(0.0, 100.0)]
    top_p: Annotated[float, Range(0.0, 1.0)]
    max_tokens: Positive
    stop: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What a role must know of the run it joins; the broker is its only source."""

    name: Name
    model: Name  # directory with config.json and tokenizer, readable by learner and actors
    seed: Count
    group_size: Positive
    groups_per_step: Positive
    max_staleness: Version
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """`tokens` consecutive completion tokens that were sampled by `version`, whose weights hash to `fingerprint`."""

    version: Version
    tokens: Positive
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verifier's raw answer. `reward` is None when void: an infrastructure failure, which never trains as 0."""

    reward: float | None
    parts: dict[str, float]
    reason: Annotated[str, MaxLength(4096)]
    seconds: Seconds

    @property
    def void(self) -> bool:
        """Whether no reward could be determined."""
        return self.reward is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled completion."""

    group_id: Count
    sample_index: Count
    prompt_ids: TokenIds  # [P]
    token_ids: TokenIds  # [T]
    behaviour_logprobs: Logprobs  # [T] nats, after temperature and top-p
    version_spans: tuple[
        VersionSpan, ...
    ]  # in order, covering T tokens; a learner that came back may make a version anew
    finish_reason: FinishReason
    text: Text  # the completion as the verifier reads it

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0:
            raise MalformedMessage("prompt_ids", "is empty")
        if len(self.token_ids) == 0:
            raise MalformedMessage("token_ids", "is empty")
        if len(self.behaviour_logprobs) != len(self.token_ids):
            raise MalformedMessage(
                "behaviour_logprobs", f"has {len(self.behaviour_logprobs)} values for {len(self.token_ids)} tokens"
            )
        if not np.isfinite(self.behaviour_logprobs).all():
            raise MalformedMessage("behaviour_logprobs", "holds a NaN or an infinity")
        spanned = sum(span.tokens for span in self.version_spans)
        if spanned != len(self.token_ids):
            raise MalformedMessage("version_spans", f"cover {spanned} of {len(self.token_ids)} tokens")
        versions = [span.version for span in self.version_spans]
        weights = {(span.version, span.fingerprint) for span in self.version_spans}
        if versions != sorted(versions) or len(weights) < len(versions):
            raise MalformedMessage(
                "version_spans", f"versions must rise, got {versions[:8]}{'…' * (len(versions) > 8)}"
            )

    @property
    def mixed_version(self) -> bool:
        """Whether more than one policy version sampled this completion."""
        return len(self.version_spans) > 1

    @property
    def token_versions(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """The policy version that sampled each token, [T] int32."""
        return np.repeat(
            np.array([span.version for span in self.version_spans], dtype=np.int32),
            [span.tokens for span in self.version_spans],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with its verdict."""

    rollout: Rollout
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The rollouts of one lease that got a reward, by sample index. At most `group_size` of them, at least two."""

    group_id: Count  # place in the task stream: groups are consumed in this order
    lease_version: Version  # the learner's version when the lease was first granted
    task: Task
    scored: tuple[ScoredRollout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRange:
    """The groups `first` to `last`, both included."""

    first: Count
    last: Count

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise MalformedMessage("last", f"is {self.last}, before the first, {self.first}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStats:
    """What the broker has counted since the run began, attached to every batch so that logs line up with steps."""

    generated_tokens: Count
    rollouts: Count
    verdicts: Count
    void_verdicts: Count
    groups_dropped: dict[str, int]
    actors: Count
    verifiers: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Where one parameter or buffer lies in the concatenation of a version's shards."""

    name: Name
    dtype: Literal["float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool"]
    shape: tuple[Count, ...]
    offset: Count
    nbytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSpec:
    """One shard: its size and the XXH3-128 of its bytes, in hex."""

    nbytes: Positive
    checksum: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaSpec:
    """The way from `base` to `version`, shard by shard, as `protocol.delta` codes it."""

    version: Version
    base: Version
    nbytes: tuple[Count, ...]  # of each shard's delta; 0: the shard did not change

    def __post_init__(self) -> None:
        if self.base >= self.version:
            raise MalformedMessage("base", f"is {self.base}, not older than {self.version}")


# ---------------------------------------------------------------- every role ↔ broker


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Any role → broker, first on a connection: who I am."""

    kind: ClassVar[str] = "hello"
    role: Role
    name: Name  # unique in the run; a second peer of the same name is refused
    host: Name
    pid: Count
    metrics_port: Annotated[int, Range(0, 65535)]
    metrics_host: Name = ""  # address on which that port listens; empty: `host`
    versions: dict[str, str]  # package → version
    session: Name  # of this process alone: one that comes back under its name is told from another that takes it
    holds: tuple[Count, ...] = ()  # said again after a break: the leases that an actor still works on


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """Learner → broker → actors: version `version` can be fetched, shard by shard, from `endpoint`."""

    kind: ClassVar[str] = "weight_manifest"
    seq: Count = 0
    version: Version
    fingerprint: Fingerprint  # BLAKE2b-128 over tensor specs and shard checksums
    endpoint: Name  # zmq address of the learner's weight server
    local: Name = ""  # its name among the sockets of the learner's host (`protocol.segments`); empty: none
    group: Count = 0  # actors that may receive it together, by one broadcast (`protocol.collective`); 0: none
    tensors: tuple[TensorSpec, ...]  # tied ones name the same bytes
    shards: tuple[ShardSpec, ...]
    deltas: tuple[DeltaSpec, ...] = ()  # a chain of versions that ends with this one, oldest first

    def __post_init__(self) -> None:
        stored = sum(shard.nbytes for shard in self.shards)
        end, places = 0, set()
        for index, tensor in enumerate(self.tensors):
            place = (tensor.offset, tensor.nbytes)
            if place in places:
                continue
            if not 0 <= tensor.offset - end < MOST_PADDING:
                raise MalformedMessage(f"tensors[{index}].offset", f"is {tensor.offset}, the one before ends at {end}")
            places.add(place)
            end = tensor.offset + tensor.nbytes
        if end != stored:
            raise MalformedMessage("shards", f"hold {stored} bytes, the tensors need {end}")
        goal = self.version
        for index, delta in reversed(list(enumerate(self.deltas))):
            if delta.version != goal or len(delta.nbytes) != len(self.shards):
                raise MalformedMessage(
                    f"deltas[{index}]",
                    f"leads to version {delta.version} in {len(delta.nbytes)} shards; needed is {goal} in "
                    f"{len(self.shards)}",
                )
            goal = delta.base


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Broker → any role: you are in."""

    kind: ClassVar[str] = "welcome"
    run: RunSpec
    policy_version: Version
    heartbeat_seconds: Seconds  # speak at least this often
    silence_seconds: Seconds  # a peer silent for longer is taken for dead by the broker
    return_seconds: Seconds  # a broker silent for longer is taken for dead by the peer; until then it may come back


@dataclass(frozen=True, slots=True, kw_only=True)
class WhoAreYou:
    """Broker → any role: nobody here knows this connection (the broker came back, or had given the peer up).

    The answer is Hello; what was sent in between is lost, and sent again after the Welcome if it must arrive.
    """

    kind: ClassVar[str] = "who_are_you"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """Broker → any role: everything up to `seq` is in the journal."""

    kind: ClassVar[str] = "ack"
    seq: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Any role → broker, and the broker's echo: I am alive, and this is what I wait for ('' while working)."""

    kind: ClassVar[str] = "heartbeat"
    waiting_for: Name = ""
    policy_version: Version = 0  # actors: the version that the engine holds
    gauges: dict[str, float] = field(default_factory=dict)  # shown in the live view


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Broker → any role: your message was not taken. `fatal` means: do not try again, stop."""

    kind: ClassVar[str] = "refusal"
    field: Name
    problem: Annotated[str, MaxLength(4096)]
    fatal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """Either way: I leave (role → broker), or the run is over (broker → role)."""

    kind: ClassVar[str] = "goodbye"
    reason: Annotated[str, MaxLength(4096)]
    finished: bool  # True: the run reached its end


# ---------------------------------------------------------------- actor ↔ broker


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """Actor → broker: lease me rollouts while I owe you fewer than `capacity`. Said once, and again when it changes.

    A total and not what is left: the broker knows what it leased, so that nothing depends on messages that cross.
    0 takes it back: the actor drains.
    """

    kind: ClassVar[str] = "lease_request"
    capacity: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Broker → actor: sample these completions of one task, with weights of `min_version` or newer."""

    kind: ClassVar[str] = "lease"
    lease_id: Count
    group_id: Count
    task: Task
    sample_indexes: tuple[Count, ...]
    seeds: tuple[Count, ...]  # one a sample, equal whoever samples it and whenever
    min_version: Version
    deadline_seconds: Seconds  # the whole lease, from receipt

    def __post_init__(self) -> None:
        if len(self.seeds) != len(self.sample_indexes):
            raise MalformedMessage("seeds", f"{len(self.seeds)} seeds for {len(self.sample_indexes)} samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutDone:
    """Actor → broker: one completion of a lease, sent the moment it ends."""

    kind: ClassVar[str] = "rollout_done"
    seq: Count = 0
    lease_id: Count
    rollout: Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFailed:
    """Actor → broker: this lease cannot be fulfilled by anyone (a prompt that does not fit, say); drop its group."""

    kind: ClassVar[str] = "lease_failed"
    seq: Count = 0
    lease_id: Count
    reason: Name  # a short word for the counter, e.g. "prompt_too_long"
    detail: Annotated[str, MaxLength(4096)]


# ---------------------------------------------------------------- verifier ↔ broker


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """Verifier → broker: send me jobs while I owe you fewer than `capacity`, counted as in `LeaseRequest`."""

    kind: ClassVar[str] = "verify_request"
    capacity: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyJob:
    """Broker → verifier: judge this text. The text is hostile input."""

    kind: ClassVar[str] = "verify_job"
    job_id: Count
    group_id: Count
    sample_index: Count
    text: Text
    reward: Name
    reference: Text
    metadata: JsonObject
    deadline_seconds: (
        Seconds  # for each reward of the expression, from the start of its check; then its worker is killed
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyDone:
    """Verifier → broker: the verdict on a job. A broker that has forgotten the job still knows the sample."""

    kind: ClassVar[str] = "verify_done"
    seq: Count = 0
    job_id: Count
    group_id: Count
    sample_index: Count
    verdict: Verdict


# ---------------------------------------------------------------- learner ↔ broker


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Learner → broker, when it starts: I begin, or go on from a checkpoint; lease none of these groups again."""

    kind: ClassVar[str] = "resume"
    seq: Count = 0
    policy_version: Version
    consumed: tuple[GroupRange, ...]  # ascending, with a gap between any two
    checkpoints: bool = False  # I write them: keep what I consume until one holds it, I may come back for it
    counted: StreamStats | None = None  # as far as I know, for a broker that knows nothing of the run

    def __post_init__(self) -> None:
        for index, (before, after) in enumerate(pairwise(self.consumed), start=1):
            if after.first <= before.last + 1:
                raise MalformedMessage(
                    f"consumed[{index}].first", f"is {after.first}, the range before ends at {before.last}: no gap"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """Learner → broker: give me the batch that version `policy_version` will consume."""

    kind: ClassVar[str] = "batch_request"
    policy_version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBatch:
    """Broker → learner: `groups_per_step` groups in lease order."""

    kind: ClassVar[str] = "group_batch"
    policy_version: Version
    groups: tuple[RolloutGroup, ...]
    stats: StreamStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumed:
    """Learner → broker: these groups are trained; the learner is now at `policy_version`."""

    kind: ClassVar[str] = "consumed"
    seq: Count = 0
    policy_version: Version
    group_ids: tuple[Count, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """Learner → broker: a checkpoint holds `policy_version`; what it consumed until then is never asked for again."""

    kind: ClassVar[str] = "checkpointed"
    seq: Count = 0
    policy_version: Version


# ---------------------------------------------------------------- actor ↔ weight server: the learner's, or an actor's


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRequest:
    """Actor → learner's weight server, before it fetches a version: of whom?"""

    kind: ClassVar[str] = "source_request"
    version: Version
    held: Annotated[int, Range(-1, 2**31 - 1)]  # the version that it goes on from; -1: none
    endpoint: Name  # where it serves others itself; empty: nowhere
    failed: Name = ""  # a source that did not answer; it is named to nobody any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Learner's weight server → actor: of this one."""

    kind: ClassVar[str] = "source"
    version: Version
    endpoint: Name  # of an actor that fetches the same; empty: of me


@dataclass(frozen=True, slots=True, kw_only=True)
class Enlist:
    """Actor → learner's weight server: I would receive this version with the group."""

    kind: ClassVar[str] = "enlist"
    version: Version
    cuda: bool  # whether it could by NCCL


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """Learner's weight server → actor: all are here; join group `group`, if you are not in it, and receive."""

    kind: ClassVar[str] = "called"
    version: Version
    group: Count  # its number
    rendezvous: Name  # host:port of its TCPStore
    rank: Positive
    world: Positive
    backend: Literal["gloo", "nccl"]
    seconds: Seconds  # after which everybody gives the group up


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledOff:
    """Learner's weight server → actor: not by the group; fetch it."""

    kind: ClassVar[str] = "called_off"
    version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRequest:
    """Actor → weight server: send me this shard, or the delta that leads to it."""

    kind: ClassVar[str] = "shard_request"
    version: Version
    shard: Count
    delta: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Weight server → actor: the bytes of one shard, or its delta."""

    kind: ClassVar[str] = "shard"
    version: Version
    shard: Count
    delta: bool = False
    data: RawBytes  # [S]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardComing:
    """An actor's weight server → actor: I am fetching it myself, wait; said again as long as that is so."""

    kind: ClassVar[str] = "shard_coming"
    version: Version
    shard: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardGone:
    """Weight server → actor: I do not hold that (any more); fetch something newer, or elsewhere."""

    kind: ClassVar[str] = "shard_gone"
    version: Version
    shard: Count = 0
    delta: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Actor → learner's weight server: from now on I sample from these weights."""

    kind: ClassVar[str] = "loaded"
    version: Version
    fingerprint: Fingerprint  # of what was loaded
    way: Name  # by which it came: shared_memory, zmq, relay, group
    nbytes: Count  # that went over a wire for it
    fetch_seconds: Seconds  # from the first request to the last byte verified
    pause_seconds: Seconds  # for which no token was sampled


Message: TypeAlias = (
    Hello
    | Welcome
    | WhoAreYou
    | Ack
    | Heartbeat
    | Refusal
    | Goodbye
    | LeaseRequest
    | Lease
    | RolloutDone
    | LeaseFailed
    | VerifyRequest
    | VerifyJob
    | VerifyDone
    | Resume
    | BatchRequest
    | GroupBatch
    | Consumed
    | Checkpointed
    | WeightManifest
    | SourceRequest
    | Source
    | Enlist
    | Called
    | CalledOff
    | ShardRequest
    | Shard
    | ShardComing
    | ShardGone
    | Loaded
)

# what must arrive: these have a `seq`
Sure: TypeAlias = RolloutDone | LeaseFailed | VerifyDone | Resume | Consumed | Checkpointed | WeightManifest
