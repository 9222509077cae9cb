"""Choose documents so that given shares of the tokens come from documents of given lengths.

The longer-context stage of NeoBERT trains on 20% of all documents, 40% of those of 1024 tokens and more, 40% of those
of 2048 and more. A window takes as many tokens as it can without repeating a document within a part; a long document
may be in several parts, as in the paper's sampling.
"""

import numpy as np

from neobert.packing.order import hash_stream


def choose_documents(
    lengths: np.ndarray, mixture: list[tuple[int, float]], seed: int
) -> tuple[np.ndarray, dict[str, int]]:
    """Documents to pack, with repeats, and the tokens that each part of the mixture got.

    Args:
        lengths: int64 [D], tokens a document without CLS and SEP.
        mixture: (least tokens with CLS and SEP, share); empty: every document once.

    A part without any document in this window gets nothing; the stage checks the whole.
    """
    if not mixture:
        return np.arange(len(lengths)), {}
    eligible = [np.flatnonzero(lengths + 2 >= least) for least, _ in mixture]
    available = [int(lengths[part].sum()) for part in eligible]
    budgets = [tokens / share for tokens, (_, share) in zip(available, mixture, strict=True) if tokens]
    budget = min(budgets, default=0.0)
    chosen: list[np.ndarray] = []
    tokens: dict[str, int] = {}
    for number, (part, (least, share)) in enumerate(zip(eligible, mixture, strict=True)):
        order = part[np.argsort(hash_stream(seed, 5, number, part), kind="stable")]
        total = np.cumsum(lengths[order])
        # To the document that brings the part nearest to its share.
        taken = order[: int(np.searchsorted(total - lengths[order] / 2, share * budget, side="right"))]
        chosen.append(taken)
        tokens[str(least)] = tokens.get(str(least), 0) + int(lengths[taken].sum())
    return np.sort(np.concatenate(chosen)), tokens
