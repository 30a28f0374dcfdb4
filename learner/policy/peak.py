"""What a device could compute at best: the denominator of the model FLOP utilisation.

Source: Chowdhery et al. 2022, "PaLM", appendix B: MFU = FLOP that the model needs / (seconds · peak FLOP a second).
"""

import math
import re
import time
from functools import cache

import torch

# FLOP/s of matrix products without sparsity, by words in the device's name: NVIDIA's data sheets
DATA_SHEETS: dict[str, dict[torch.dtype, float]] = {
    "H200": {torch.bfloat16: 989e12, torch.float32: 67e12},
    "H100 PCIe": {torch.bfloat16: 756e12, torch.float32: 51e12},
    "H100": {torch.bfloat16: 989e12, torch.float32: 67e12},
    "A100": {torch.bfloat16: 312e12, torch.float32: 19.5e12},
    "L40S": {torch.bfloat16: 362e12, torch.float32: 91.6e12},
    "L4": {torch.bfloat16: 121e12, torch.float32: 30.3e12},
}
SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices that are multiplied where no data sheet is known
ATTEMPTS = 5


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of `device` in `dtype`: by its data sheet, or as fast as it multiplies matrices here and now."""
    stated = data_sheet(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None
    return stated or measured(device, dtype)


def data_sheet(name: str, dtype: torch.dtype) -> float | None:
    """What is known of the device called `name`."""
    known = (figures for words, figures in DATA_SHEETS.items() if re.search(rf"\b{words}\b", name))
    return next(known, {}).get(dtype)


def measured(device: torch.device, dtype: torch.dtype) -> float:
    """The best of some products of square matrices, in FLOP a second."""
    side = SIDES[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))  # [side, side]
    best = math.inf
    for _ in range(ATTEMPTS):
        begun = time.perf_counter()
        product = left @ right  # [side, side]
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best
