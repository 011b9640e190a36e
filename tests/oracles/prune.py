"""The image tokens that each pruning method keeps, in float64, from the patches or features of one picture."""

import numpy as np


def first_of_each(patches, only_one_colour=False):
    """Keeps a patch `[3, h, w]` unless an earlier one is equal; `only_one_colour` never drops another kind of patch."""
    kept = []
    for number, patch in enumerate(patches):
        one_colour = all(len(np.unique(channel)) == 1 for channel in patch)
        equal = any(patch.shape == other.shape and bool(np.all(patch == other)) for other in patches[:number])
        kept.append(not equal or (only_one_colour and not one_colour))
    return kept


def cosine_distances(features):
    """1 - cosine, `[T, T]`; a row of zeros is at distance 1 of everything."""
    rows = np.asarray(features, np.float64)
    length = np.sqrt((rows**2).sum(axis=1))
    rows = rows / np.where(length > 0, length, 1.0)[:, None]
    return 1.0 - rows @ rows.T


def relevance(features, question, neighbours):
    """For each row the largest cosine with a row of the question, over its neighbours, moved to 0..1."""
    rows, words = np.asarray(features, np.float64), np.asarray(question, np.float64)
    near = np.array([max(_cosine(row, word) for word in words) for row in rows])
    half = neighbours // 2
    around = np.array([near[max(0, n - half) : n + half + 1].max() for n in range(len(near))])
    spread = around.max() - around.min()
    return (around - around.min()) / spread if spread else np.ones(len(near))


def _cosine(one, other):
    lengths = np.sqrt((one**2).sum() * (other**2).sum())
    return float(one @ other / lengths) if lengths > 0 else 0.0


def determinant_steps(features, weights, chosen):
    """For each choice, the factor by which it multiplies the kernel's determinant, and the largest of any other row."""
    similar = 1.0 - cosine_distances(features)
    np.fill_diagonal(similar, 1.0)
    kernel = similar * weights[:, None] * weights[None]
    steps = []
    for number, one in enumerate(chosen):
        known = list(chosen[:number])
        gains = {}
        for row in range(len(kernel)):
            if row not in known:
                inner = kernel[np.ix_(known, known)]
                rest = kernel[row, known] @ np.linalg.solve(inner, kernel[known, row]) if known else 0.0
                gains[row] = kernel[row, row] - rest
        steps.append((gains[one], max(gains.values())))
    return steps


def greedy_steps(features, chosen):
    """For each choice, its distance to the nearest earlier choice, and the largest that any other row had.

    The first choice counts its nearest neighbour among all rows.
    """
    distance = cosine_distances(features)
    count = len(distance)
    alone = distance + np.diag(np.full(count, np.inf))
    steps = []
    for number, one in enumerate(chosen):
        nearest = alone.min(axis=1) if number == 0 else distance[:, chosen[:number]].min(axis=1)
        rest = [row for row in range(count) if row not in chosen[:number]]
        steps.append((nearest[one], max(nearest[rest])))
    return steps
