"""The most that a device can do: stated or measured, and a step of training below it."""

import pytest
import torch

from learner.policy import peak
from learner.policy.peak import data_sheet, measured, peak_flops


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_data_sheet_is_found_by_the_whole_word_of_the_name(name: str, flops: float | None) -> None:
    assert data_sheet(name, torch.bfloat16) == flops


def test_a_precision_that_is_not_on_the_sheet_is_not_made_up() -> None:
    assert data_sheet("NVIDIA H200", torch.float16) is None


def test_a_device_without_a_sheet_is_measured_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peak.SIDES, "cpu", 256)
    best = measured(torch.device("cpu"), torch.float32)
    assert 1e8 < best < 1e15
    peak_flops.cache_clear()
    assert peak_flops(torch.device("cpu"), torch.float32) == peak_flops(torch.device("cpu"), torch.float32)
    peak_flops.cache_clear()
