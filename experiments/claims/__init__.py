"""The claims of the documents, run: see `experiments.claims.ledger`."""
