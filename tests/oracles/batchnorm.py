"""Statistics of layers ``relu(norm(W x))`` one after the other, by NumPy, from the definition."""

import numpy as np


def statistics(batches, weights, *, passes=1, affine=None, eps=1e-5):
    """[(mean, variance) of each layer] of batches [(pixels, channels)], each layer a matrix (out, in).

    In pass 1 a batch is normalised by its own mean and (biased) variance, later by what the pass before has found.
    """
    affine = affine or [(1.0, 0.0)] * len(weights)
    found = None
    for _ in range(passes):
        seen = [[] for _ in weights]
        for batch in batches:
            x = np.asarray(batch, dtype=np.float64)
            for k, (weight, (scale, shift)) in enumerate(zip(weights, affine, strict=True)):
                x = x @ np.asarray(weight, dtype=np.float64).T
                seen[k].append(x)
                mean, var = (x.mean(0), x.var(0)) if found is None else found[k]
                x = np.maximum((x - mean) / np.sqrt(var + eps) * scale + shift, 0)
        found = []
        for values in seen:
            values = np.concatenate(values)
            mean = sum(values) / len(values)
            found.append((mean, sum((values - mean) ** 2) / (len(values) - 1)))
    return found
