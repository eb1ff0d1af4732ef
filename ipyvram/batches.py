"""How many samples a model was given: claims come in, a batch size goes out. The batch is dimension 0 of what a root module is called with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ipyvram.recording import Claim


def batch_size(claims: Iterable[Claim], begin_ns: int, end_ns: int) -> int:
    """The most common dimension 0 among the inputs of that time; 0 where there were none, or scalars only.

    The shape is that of the tensor, not of its storage: a batch may be a view of the whole data set.
    """
    sizes = Counter(
        c.shape[0] for c in claims if c.category == "inputs" and c.shape and begin_ns <= c.time_ns <= end_ns
    )
    return sizes.most_common(1)[0][0] if sizes else 0
