"""What to type against a finding."""

from layerwise.report.evidence import Evidence


GIVEN_FIX = (
    "draw the parameters anew, or look at what was loaded into them (weights, biases, "
    "running statistics): the networks drawn beside it do not have this"
)

INPUT_FIX = "center the inputs and scale them to E[x^2] = 1"

SPREAD_FIX = "widen the layers: the variance of log q falls as depth / width"

NOT_FLAT = "use an activation that is not flat on one side (nn.leaky_relu, nn.elu)"

WIDEN_FIX = f"widen the layer, or {NOT_FLAT}"

CENTER_FIX = f"center its input, or {NOT_FLAT}"

NORMALIZE_MORE_FIX = (
    "pass more than one example, or normalize over channels (nn.LayerNorm): a "
    "normalization over one number leaves nothing of it"
)


COMPOSED_FIX = (
    "draw the weights with variance gain / fan_in in the model's own init: schemes "
    "leave those made of several parameters alone"
)

SLOPE_FIX = (
    "normalize before the activations (nn.LayerNorm), or use one that is as steep as "
    "it is large (nn.relu)"
)


def scale_fix(scheme: str = "kernel_forward") -> str:
    """Returns the call that draws weights which keep the signal.

    A layer's weights change the signal's second moment and the energy of the
    cotangents by one and the same factor, so that what keeps the one keeps the other,
    but for what slopes, padding and pooling do.
    """
    return f'params = lw.initialize(model, inputs, key, scheme="{scheme}")'


def recurrent_fix(evidence: Evidence) -> str:
    """Returns what keeps a state: schemes that follow the signal meet it at zero."""
    if evidence.composed:  # as the gates of OptimizedLSTMCell
        return (
            "draw the recurrent weights with a gain of 1: "
            "recurrent_kernel_init=nn.initializers.orthogonal()"
        )
    return scale_fix("orthogonal")


def depth_fix(evidence: Evidence, direction: str) -> str:
    """Returns the remedy for a trunk that loses or gains: weights, or branches."""
    if evidence.recurrent:
        return recurrent_fix(evidence)
    if evidence.composed:
        return COMPOSED_FIX
    if evidence.tied:  # `kernel_forward` scales a leaf for the first layer that uses it
        return scale_fix("kaiming_fan_in")
    if evidence.on_sums:  # a scheme gives each of L branches 1 / L
        return scale_fix()
    if evidence.normalized:
        return (
            "put skip connections around the layers (x + f(x)); the scale of weights "
            "changes nothing before a normalization"
        )
    if direction != "backward":
        return scale_fix()
    # With the signal kept, slopes are what is left; a scheme that keeps cotangents
    # entry by entry would also make up for what averages take.
    return SLOPE_FIX if evidence.averages else scale_fix("kernel_backward")
