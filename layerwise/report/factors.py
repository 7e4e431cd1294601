"""What multiplies the signal on its way through a layer, as measured."""

from layerwise.report.evidence import Evidence


def changes(evidence: Evidence, number: int) -> dict[str, float]:
    """Returns what a layer multiplies the signal's second moment by, as measured.

    "weights" is fan-in times their variance, "padding" the share of connections that
    are inside the map, "activation" and "pooling" ratios of second moments.
    """
    c = evidence.layer(number).connections
    found = {"weights": evidence.gain(number)}
    inside = c.total / (c.n_out * c.fan_in) if c.n_out and c.fan_in else 1.0
    if inside < 1:
        found["padding"] = inside
    for name, kinds in (("activation", ("u", "v")), ("pooling", ("v", "z"))):
        ratio = evidence.step(kinds, "forward", number)
        if ratio is not None:
            found[name] = ratio
    return found
