"""Matrices of random codes, and how AWQ, GPTQ and compressed-tensors store them, written down bit by bit.

Sources: AutoAWQ's `WQLinear_GEMM.from_linear`, AutoGPTQ's `QuantLinear.pack`, compressed-tensors' `int-quantized`.
"""

import numpy as np

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def random_codes(rng, outputs, inputs, group, symmetric=False, act_order=False, least=0):
    """Codes `[N, K]`, zeros and scales `[N, G]`, the group of each input, and the float64 values."""
    groups = -(-inputs // group)
    codes = rng.integers(0, 16, (outputs, inputs))
    zeros = np.full((outputs, groups), 8) if symmetric else rng.integers(least, 16 + least, (outputs, groups))
    scales = (rng.uniform(0.5, 1.5, (outputs, groups)) * 0.25 / inputs**0.5).astype(np.float16)
    index = np.arange(inputs) // group
    if act_order:
        index = rng.permutation(index)
    values = np.empty((outputs, inputs))
    for n in range(outputs):
        for k in range(inputs):
            g = index[k]
            values[n, k] = (float(codes[n, k]) - float(zeros[n, g])) * float(scales[n, g])
    return codes, zeros, scales, index, values


def _words(numbers, order):
    """Eight numbers along the last axis to an int32, number `order[i]` in the i-th four bits."""
    word = np.zeros(numbers.shape[:-1], np.uint32)
    for place, which in enumerate(order):
        word |= numbers[..., which].astype(np.uint32) << np.uint32(4 * place)
    return word.view(np.int32)


def awq(codes, zeros, scales):
    """`qweight [K, N/8]`, `qzeros [G, N/8]`, `scales [G, N]`."""
    outputs = len(codes)
    return {
        "qweight": _words(codes.T.reshape(-1, outputs // 8, 8), AWQ_ORDER),
        "qzeros": _words(zeros.T.reshape(-1, outputs // 8, 8), AWQ_ORDER),
        "scales": scales.T,
    }


def gptq(codes, zeros, scales, index, offset):
    """`qweight [K/8, N]`, `qzeros [G, N/8]` less the offset, `scales [G, N]`, `g_idx [K]`."""
    outputs, inputs = codes.shape
    straight = list(range(8))
    return {
        "qweight": _words(codes.T.reshape(inputs // 8, 8, outputs).transpose(0, 2, 1), straight),
        "qzeros": _words((zeros.T - offset).reshape(-1, outputs // 8, 8), straight),
        "scales": scales.T,
        "g_idx": index.astype(np.int32),
    }


def int8(rng, outputs, inputs, group):
    """Numbers -128 to 127 `[N, K]`, scales `[N, G]` float32, and the float64 values."""
    numbers = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    scales = (rng.uniform(0.5, 1.5, (outputs, inputs // group)) * 0.02 / inputs**0.5).astype(np.float32)
    values = numbers.astype(np.float64) * np.repeat(scales.astype(np.float64), group, axis=1)
    return numbers, scales, values
