"""One file per experiment; ``--config=experiments/configs/NAME.py:FORM``."""
