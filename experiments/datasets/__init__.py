"""Our own TFDS builders; they need no TensorFlow."""
