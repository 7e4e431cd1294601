"""The claims of the documents, run: see `experiments.claims.ledger`."""

from experiments.claims import (
    layer_kinds,
    ledger,
    pooling,
    residual,
    unravelled,
    variance,
)


DECIDED_IN = (pooling, variance, unravelled, residual, layer_kinds)

__all__ = ["DECIDED_IN", "ledger"]
