"""What to type against a finding."""

from layerwise.initializers import scheme_names
from layerwise.report.evidence import Evidence


_PREFERRED = {
    "forward": ("kernel_forward", "asv_forward", "kaiming_fan_in"),
    "backward": ("kernel_backward", "asv_backward", "kaiming_fan_out"),
    "both": ("balanced", "asv_forward", "kaiming_fan_in"),
}


GIVEN_FIX = (
    "draw the parameters anew, or look at what was loaded into them (weights, biases, "
    "running statistics): the networks drawn beside it do not have this"
)

INPUT_FIX = "center the inputs and scale them to E[x^2] = 1"

SPREAD_FIX = "widen the layers: the variance of log q falls as depth / width"

WIDEN_FIX = (
    "widen the layer, or use an activation that is not flat on one side "
    "(nn.leaky_relu, nn.elu)"
)

NORMALIZE_MORE_FIX = (
    "pass more than one example, or normalize over channels (nn.LayerNorm): a "
    "normalization over one number leaves nothing of it"
)


def scale_fix(direction: str = "forward") -> str:
    """Returns the call that draws weights which keep the signal."""
    known = scheme_names()
    scheme = next(s for s in _PREFERRED[direction] if s in known)
    return f'params = lw.initialize(model, inputs, key, scheme="{scheme}")'


def recurrent_fix() -> str:
    """Returns what keeps a state: schemes that follow the signal meet it at zero."""
    return 'params = lw.initialize(model, inputs, key, scheme="orthogonal")'


def depth_fix(evidence: Evidence, direction: str) -> str:
    """Returns the remedy for a trunk that loses or gains: weights, or branches."""
    if evidence.recurrent:
        return recurrent_fix()
    if evidence.on_sums and not evidence.normalizes_branches:
        merges = sum(evidence.sites[i].kind == "merge" for i in evidence.trunk)
        return (
            "normalize the input of every residual branch (nn.LayerNorm), or multiply "
            f"each branch by {max(merges, 1)} ** -0.5"
        )
    if evidence.normalized:
        return (
            "put skip connections around the layers (x + f(x)); the scale of weights "
            "changes nothing before a normalization"
        )
    return scale_fix(direction)
