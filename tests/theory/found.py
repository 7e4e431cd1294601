"""Architectures that were once predicted wrongly, and why."""

from tests.theory.architectures import Architecture


FOUND = {
    # What is normal times a random gain is not, and its derivative goes with the gain.
    "random gains": Architecture(
        ("gains", "residual"), act="tanh", head="flat", rank=0, batch=4
    ),
    # Some windows of a sparse input are empty: that law is not log-normal.
    "a first layer on sparse inputs": Architecture(
        ("shifted", "bias"), act="sin", inputs="sparse", size=4, rank=1
    ),
    # A maximum sits where the power is high, and so is the gate's other factor there.
    "factors behind a maximum": Architecture(
        ("gate",), act="leaky", width=32, gain=1.0, head="max", inputs="white", size=6
    ),
    # E[sign sign'] of positions that do not correlate is zero, and was divided by.
    "absolute values that do not correlate": Architecture(
        ("pointwise",),
        act="abs",
        gain=1.0,
        head="max",
        inputs="tokens",
        size=4,
        rank=1,
        batch=1,
    ),
    # Where windows are empty, positions that are normalized together still differ.
    "group normalization of sparse inputs": Architecture(
        ("group_norm",), act="tanh", head="max", inputs="sparse", size=3, rank=1
    ),
    # Of a single set, one array does not tell whether its mean is taken out.
    "a single set": Architecture(
        ("rms_norm",), "softplus", 12, 1.0, "map", "sparse", size=3, rank=0, batch=1
    ),
    # A random embedding makes the law of what it is added to more normal.
    "an embedding behind a bent function": Architecture(
        ("subtract:1", "scale", "subtract:1", "embedded", "depthwise"),
        act="hard_swish",
        width=12,
        head="attended",
        inputs="photo",
        size=3,
        rank=1,
    ),
    # A law that is not normal changes with the second moment from place to place.
    "laws that differ by position": Architecture(
        ("add:3", "subtract:2", "layer_scaled", "pointwise", "standardized"),
        act="sin",
        width=24,
        gain=1.0,
        head="first",
        inputs="positive",
        size=5,
    ),
    # A maximum of mish(u) - u is where u is least: values out of order.
    "a maximum of what does not rise": Architecture(
        ("subtract:2", "max_overlap", "reversed"),
        act="mish",
        width=12,
        gain=1.0,
        head="first",
        inputs="tokens",
        size=3,
    ),
    # Most taps of a dilated convolution on a small map read padding.
    "few taps on a small map": Architecture(
        ("dilated", "average"), act="square", gain=2.0, inputs="offset", size=4, rank=3
    ),
    # Every other position behind a transposed convolution has the same taps.
    "a transposed convolution on a long map": Architecture(
        ("bias", "cat:3", "transposed"), "gelu", 24, inputs="tokens", size=5, rank=1
    ),
    # Each position has a variance of its own, and a slope of its own at a maximum.
    "a maximum of sines on a map of three": Architecture(
        ("embedded", "squeeze_excite", "even", "scale", "scan"),
        act="sin",
        width=16,
        gain=2.0,
        head="max",
        inputs="unequal",
        size=3,
        rank=2,
        batch=4,
    ),
    # Two windows of 36 are zero, and are divided by the root of epsilon.
    "few positions that are zero, normalized": Architecture(
        ("rms_norm", "grown", "layer_scaled", "projected", "add:3"),
        act="abs",
        width=24,
        head="flat",
        inputs="sparse",
        size=3,
        rank=2,
        batch=4,
    ),
    # Where a maximum is large, so are the weights that made it: three channels read.
    "a maximum close to the data": Architecture(
        ("add:1",), "square", 12, 1.0, "max", "offset", size=3
    ),
    "squares beyond float64": Architecture(
        ("strided", "scan", "resized", "cropped", "bottleneck", "cat:2"),
        act="square",
        width=24,
        head="flat",
        inputs="positive",
        size=5,
    ),
    # Each group is divided by its own power, however much that differs.
    "groups of unlike channels": Architecture(
        ("two", "running", "cat:2", "attention", "group_norm", "max_overlap"),
        act="relu6",
        width=12,
        gain=1.0,
        head="max",
        size=5,
    ),
    # All three values that a depthwise convolution reads are zero one time in six.
    "a depthwise convolution behind ReLU": Architecture(
        ("pointwise", "gate_with:3", "dropout", "scale", "embedded", "depthwise"),
        width=24,
        head="map",
        inputs="sparse",
        size=4,
        rank=1,
    ),
    # The same zeros, behind a function that is flat above too.
    "a depthwise convolution between clipped ReLU": Architecture(
        ("bottleneck", "gate_with:3", "project:2", "inverted", "subtract:3", "cat:1"),
        act="relu6",
        width=24,
        gain=2.0,
        head="first",
        inputs="photo",
        size=5,
        rank=1,
        batch=1,
    ),
    # A unit is one of the few that its own branch reads: both are large together.
    "a narrow value plus its own branch": Architecture(
        ("scan", "gate_with:3", "gate_with:2"),
        act="sin",
        width=12,
        gain=1.0,
        head="map",
        inputs="photo",
        size=4,
    ),
    # What all channels do together counts little for one, alone in its group.
    "a separable convolution": Architecture(
        ("separable",), "square", 24, 1.0, "map", "sparse", size=4, rank=1, batch=1
    ),
    # What a maximum chose has large gains, whatever stands between.
    "gains behind a maximum": Architecture(
        ("gains",), "square", 24, 1.0, "max", size=3, rank=1
    ),
    # A maximum over many positions of squares of sums of nine: no average holds there.
    "a maximum of heavy tails": Architecture(
        ("depthwise",), "square", 12, 1.0, "max", "tokens", size=4
    ),
    # One mask, drawn once, keeps what it happens to keep of the largest example.
    "a drawn mask": Architecture(
        ("dropout",), "square", 24, 1.0, "map", "unequal", size=3
    ),
    # A correction of order 1/width beyond what float64 holds is none.
    "a correction that is not small": Architecture(
        ("tied", "causal", "max_overlap", "grown", "context"),
        act="sin",
        width=12,
        head="map",
        inputs="sparse",
        size=5,
    ),
    # A value that is large is part of what it is divided by.
    "normalized products": Architecture(
        ("gate_with:3", "layer_norm", "subtract:2"),
        act="square",
        width=24,
        gain=1.0,
        head="flat",
        inputs="sparse",
        size=3,
    ),
    # Examples that are empty at different places are no average and its factors.
    "examples that are empty in places": Architecture(
        ("post", "patches"), "tanh", 12, 1.0, "flat", "sparse", size=4, rank=1
    ),
    "the first step on sparse inputs": Architecture(
        ("cat:3", "squared", "recurrent"), "identity", 16, 1.0, "max", "sparse", 5, 1
    ),
    "a maximum of sparse inputs": Architecture(
        ("squared",), "identity", head="max", inputs="sparse", size=4
    ),
    # Slopes of an example that is zero are those at zero.
    "an example that is zero": Architecture(
        ("cat:1", "max", "subtract:3", "average"),
        act="relu6",
        gain=1.0,
        inputs="sparse",
        size=4,
        rank=0,
    ),
    # The maximum over a map sits where the entries are large.
    "a maximum of unequal entries": Architecture(
        ("pointwise", "cat:1", "transposed", "add:2", "repeated"),
        act="sin",
        width=12,
        gain=1.0,
        head="max",
        inputs="sparse",
        size=4,
        batch=1,
    ),
    # ReLU makes exact zeros, times gains too: a slope at zero is not the one beside.
    "zeros times gains behind a clipped ReLU": Architecture(
        ("post", "gains", "grown"), "relu6", 12, 1.0, "mean", "offset", size=5
    ),
    # Sparse examples stay so through layers that mix no positions.
    "a sum of functions of sparse inputs": Architecture(
        ("tied_residual", "subtract:2", "repeated", "prelu", "depthwise", "batch_norm"),
        act="sin",
        gain=1.0,
        head="first",
        inputs="sparse",
        size=3,
        rank=1,
    ),
    # Nothing here mixes positions by fixed weights: only single ones are held.
    "rows laid behind each other, alone": Architecture(
        ("mixer", "strided", "layer_scaled", "patches", "gate_with:3", "standardized"),
        act="leaky",
        width=24,
        head="flat",
        inputs="offset",
        size=3,
        batch=1,
    ),
    # Whether all taps of a depthwise convolution read zeros goes by pairs of positions.
    "an inverted block": Architecture(
        ("inverted",), head="map", inputs="unequal", size=3
    ),
    # Fourth powers of squares of squares are beyond float64.
    "squares of squares": Architecture(
        ("projected", "grouped", "project:2", "cat:3", "patches"),
        act="square",
        width=12,
        head="max",
        inputs="positive",
        size=5,
        rank=1,
    ),
    # Each output of a depthwise convolution reads one channel: its law is a mixture.
    "a smooth function behind a depthwise convolution": Architecture(
        ("residual", "shifted", "pointwise", "subtract:2", "inverted"),
        act="softplus",
        width=12,
        head="flat",
        inputs="unequal",
        size=3,
        rank=2,
        batch=1,
    ),
    # Behind a square, second moments of neighbouring positions fluctuate together by
    # more than the square of the entries' correlation.
    "squares behind convolutions": Architecture(
        ("dilated", "recurrent", "grown", "gains", "squared", "gains"),
        act="square",
        inputs="tokens",
        size=4,
        rank=2,
        batch=1,
    ),
    # What is added to a variance shows only where that is as small.
    "batch normalization of small values": Architecture(
        ("resized", "patches", "gains", "cropped", "glu", "batch_norm"),
        act="silu",
        width=16,
        gain=1.0,
        head="map",
        inputs="unequal",
        size=4,
        rank=2,
        batch=1,
        weights="uniform",
    ),
    # Halves of what a depthwise convolution made of two unlike halves.
    "unlike halves through a depthwise convolution": Architecture(
        ("strided", "rectified", "cat:1", "depthwise", "shuffled", "project:1"),
        act="selu",
        width=12,
        gain=1.0,
        head="flat",
        inputs="photo",
        size=3,
        weights="uniform",
    ),
    # Slopes behind the sum follow the tokens, which queries are made of too.
    "squares behind attention": Architecture(
        ("clipped", "attention"), act="square", width=24, gain=1.0, size=4
    ),
    # Tokens that are not normal: their kernels fluctuate by their own kurtosis.
    "attention to what is rectified": Architecture(
        ("subtract:1", "attention"), act="abs", width=24, gain=1.0, size=5
    ),
    # Where a small entry is the maximum its z is large: the slope goes with its value.
    "a maximum of squares on sparse maps": Architecture(
        ("add:3",), "square", 24, 1.0, "max", "sparse", size=4, weights="truncated"
    ),
    # Large sines are near 1, and flat there: those at small positions pass the most on.
    "a maximum of sines of a gate on photographs": Architecture(
        ("gate",), "sin", 24, head="max", inputs="photo", size=5
    ),
    # A sigmoid's mean hardly differs where its deviation does, and one position of the
    # map has little to do with all others.
    "a maximum of sigmoids": Architecture(
        ("twins", "glu", "patches", "transposed", "post", "even"),
        act="sigmoid",
        width=16,
        head="max",
        inputs="positive",
        size=5,
        rank=1,
    ),
    # A unit is one of those that make what it is multiplied by; and an example that is
    # zero has slopes at zero behind the product too.
    "a gate by one of those that make the value": Architecture(
        ("gate_with:3",), "leaky", head="flat", inputs="sparse", size=3, rank=0
    ),
    # Random gains have the law that they are drawn from.
    "gains that are uniform": Architecture(
        ("gains", "squared"), "identity", head="flat", size=3, rank=0, weights="uniform"
    ),
    # Slopes of an example that is zero are those at zero, and a batch has one average.
    "a batch with an example that is zero": Architecture(
        ("twins", "activated", "scan", "batch_norm"),
        act="selu",
        width=24,
        head="flat",
        inputs="sparse",
        size=3,
    ),
    # What gains make differ between units, a normalization of each unit divides out.
    "gains in front of a normalization of each unit": Architecture(
        ("tied", "causal", "gains", "instance_norm", "grown", "rectified_norm"),
        act="hard_swish",
        width=24,
        gain=2.0,
        head="first",
        inputs="positive",
        size=4,
    ),
    # The mean of a curved function differs between examples as their power does.
    "an average of examples of unlike power": Architecture(
        ("average_overlap", "batch_norm"),
        act="elu",
        width=24,
        gain=2.0,
        head="max",
        inputs="unequal",
        size=5,
    ),
    # A sum of two that ReLU made is zero where both are, and passes nothing on there.
    "sums of what is rectified, rectified": Architecture(
        ("activated_twice",), width=12, head="first", size=4, rank=1
    ),
    # Cotangents of two positions that are independent stay so behind a normalization.
    "positions normalized alike": Architecture(
        ("running", "context", "layer_norm", "dropout"),
        width=16,
        gain=2.0,
        head="first",
        size=5,
        batch=4,
        weights="uniform",
    ),
    # Where sets differ from network to network, few small ones make the average of 1/q.
    "sets that differ": Architecture(
        (
            "average_overlap",
            "gate_with:3",
            "repeated",
            "standardized",
            "average",
            "group_norm",
        ),
        width=24,
        gain=2.0,
        head="max",
        inputs="unequal",
        size=4,
        batch=4,
    ),
    # A gate's power goes with that of what it gates, and so does a cotangent's.
    "a product squared": Architecture(
        ("swiglu", "multiplied"),
        act="mish",
        width=24,
        gain=2.0,
        head="map",
        inputs="positive",
        size=5,
        batch=4,
    ),
    # Known to a factor of a thousand: whether it is clipped is not known.
    "what is clipped of heavy tails": Architecture(
        ("dilated", "squeeze_excite", "scale", "dilated", "separable", "clipped"),
        act="square",
        width=12,
        gain=1.0,
        head="flat",
        inputs="positive",
        size=3,
        rank=1,
        batch=1,
    ),
    # Its spread is zero to rounding, and was below it.
    "gates that are all open or closed": Architecture(
        ("project:1", "gate_with:2", "gate_with:1", "patches", "glu"),
        act="square",
        width=24,
        gain=1.0,
        head="first",
        inputs="sparse",
        size=3,
        rank=1,
        batch=4,
    ),
    "a normalization of zeros": Architecture(
        ("subtract:2", "norm_of_powers", "scan", "shifted", "layer_scaled"),
        act="identity",
        width=16,
        gain=2.0,
        head="attended",
        inputs="photo",
        size=3,
        rank=0,
        batch=4,
        weights="uniform",
    ),
}
