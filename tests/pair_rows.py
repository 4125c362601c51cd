"""Pairs written down as rows."""

from finetuner.pairs import TextPairs


def pairs(*rows):
    """Rows of (anchor, positive[, negative])."""
    padded = [(*row, None)[:3] for row in rows]
    anchors, positives, negatives = (list(column) for column in zip(*padded, strict=True))
    return TextPairs(anchors, positives, negatives, [None] * len(rows))


def scored(*rows):
    left, right, scores = (list(column) for column in zip(*rows, strict=True))
    return TextPairs(left, right, [None] * len(rows), scores)
