"""Token buckets on a clock set by hand."""

from learner.broker.rates import FREE_BYTES, Bucket, weight


def taken(bucket: Bucket, now: float, tries: int) -> int:
    return sum(bucket.takes(now) for _ in range(tries))


def test_a_burst_is_taken_at_once_and_then_the_steady_rate() -> None:
    bucket = Bucket(rate=10.0, burst_seconds=3.0)
    assert taken(bucket, 100.0, 1000) == 30
    assert taken(bucket, 100.5, 1000) == 5
    assert taken(bucket, 100.55, 1000) == 0
    assert taken(bucket, 100.65, 1000) == 1


def test_a_quiet_peer_gathers_no_more_than_a_burst() -> None:
    bucket = Bucket(rate=10.0, burst_seconds=3.0)
    assert taken(bucket, 0.0, 10) == 10
    assert taken(bucket, 1e6, 1000) == 30


def test_over_a_long_time_the_rate_is_kept_however_the_messages_come() -> None:
    bucket = Bucket(rate=7.0, burst_seconds=1.0)
    assert sum(bucket.takes(step * 0.01) for step in range(10_001)) == 7 + 700


def test_a_large_message_counts_as_several_and_needs_a_full_bucket_at_most() -> None:
    assert [weight(size) for size in (0, 1, FREE_BYTES, 2 * FREE_BYTES)] == [1, 1, 1, 2]
    bucket = Bucket(rate=10.0, burst_seconds=1.0)
    assert bucket.takes(0.0, 1000.0)
    assert not bucket.takes(0.05)
    assert bucket.takes(1.5, 9.0)
