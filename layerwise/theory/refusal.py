"""What a rule raises where its assumptions do not hold."""

from layerwise.errors import LayerwiseError


class NoSoundRule(LayerwiseError, NotImplementedError):
    """A node outside of what its rule is right for; the message says why."""
