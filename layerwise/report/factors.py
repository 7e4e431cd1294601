"""What multiplies the signal on its way through a layer, as measured."""

from layerwise.report.evidence import Evidence, is_normalized
from layerwise.tracing.layers import Layer


def changes(evidence: Evidence, number: int) -> dict[str, float]:
    """Returns what a layer multiplies the signal's second moment by, as measured.

    "weights" is fan-in times their variance, "padding" the share of connections that
    are inside the map, "activation" and "pooling" ratios of second moments; where a
    parameter or anything else multiplies before the activation, the name says so.
    """
    c = evidence.layer(number).connections
    found = {"weights": evidence.gain(number)}
    inside = c.total / (c.n_out * c.fan_in) if c.n_out and c.fan_in else 1.0
    if inside < 1:
        found["padding"] = inside
    for name, kinds in ((_until_v(evidence.layer(number)), "uv"), ("pooling", "vz")):
        ratio = evidence.step(kinds, "forward", number)
        if ratio is not None:
            found[name] = ratio
    return found


def _until_v(layer: Layer) -> str:
    """Names what takes u to v: "activation", or also what comes before it."""
    kinds = {step.kind for step in layer.steps if step.value <= layer.v}
    if is_normalized(layer):
        before = "normalization"
    elif "scale" in kinds:
        before = "scale"
    else:
        return "activation"
    return f"{before} and activation" if "pointwise" in kinds else before
