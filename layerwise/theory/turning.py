"""Where weights that turned toward their output show: `layerwise.theory.coherence`."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from layerwise.moments.activations import Numeric, cached_float64, two_slopes
from layerwise.theory import coherence, lags as lagging, marginal, own_channel, profile
from layerwise.theory.coherence import Block, Coherence
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.state import Field, State
from layerwise.tracing import primitives


LEAST = -0.5
"""What is taken from the power of a cotangent at most."""


def in_front(cotangent: Field, value: Field, phi: Numeric, slope: Numeric) -> Coherence:
    """Returns the coherence in front of an activation of `value`."""
    if cotangent.coherence.is_zero:
        return cotangent.coherence
    w, u, f, s = _at_nodes(value, phi, slope)
    mean = float(w @ u)
    rows = [_projection(w, s, f), _projection(w, s * (u - mean), f)]
    rows[1] /= np.sqrt(max(float(w @ np.square(u - mean)), TINY))
    return cotangent.coherence.seen_by(np.stack(rows), float(w @ s**2))


def _projection(w: np.ndarray, psi: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Returns psi by the (c, b) of f: its mean, and its covariance with f."""
    apart = f - w @ f
    spread = float(w @ np.square(apart))
    along = float(w @ (psi * apart)) / np.sqrt(spread) if spread > TINY else 0.0
    return np.array([float(w @ psi), along])


TINY = 1e-30


def in_front_of_weights(
    cotangent: Field, before: Field, value: State, result: State, fan: int
) -> tuple[Field, float]:
    """Returns a cotangent in front of a contraction, and what was added as a logarithm.

    Args:
        cotangent: What it would be without.
        before: That of the contraction's result.
        value: What is contracted.
        result: What of it is made.
        fan: Channels that are summed over.
    """
    mean, second = value.average().levels
    if before.coherence.is_zero or not second > 0.0:
        return cotangent.replace(coherence=coherence.INDEPENDENT), 0.0
    along = max(before.coherence.along(*result.average().levels), -1.0)
    after, added = coherence.in_front_of_weights(along, mean, second, fan)
    added = max(added, LEAST)
    got = cotangent.scaled(1.0 + added).replace(coherence=after)
    return got, abs(float(np.log1p(added)))


def in_sum(
    ctx: RuleContext, node: Node, states: Sequence[State], cotangents: Sequence[State]
) -> list[State]:
    """Returns the cotangents of the two terms of x + f(W x), with what W turning adds.

    States half of it as the error, on maps all of it.

    Args:
        ctx: The context.
        node: The sum.
        states: Its terms.
        cotangents: Theirs, as of independent terms.
    """
    found = list(cotangents)
    if len(states) != 2 or all(s.average().symmetric for s in states):
        return found
    if _are_twins(ctx, node, states):
        return _at_twins(node, states, found)
    for skip, branch in ((0, 1), (1, 0)):
        block = _block(ctx, node, states, skip, branch)
        if block is None:
            continue
        ct = found[skip]
        counts, fields = zip(*ct.parts, strict=True)
        turned = (_at_skip(f, block, states[skip], ct.coherent) for f in fields)
        fields, errors = zip(*turned, strict=True)
        found[skip] = dataclasses.replace(
            ct,
            parts=tuple(zip(counts, fields, strict=True)),
            tolerance=ct.tolerance + max(errors),
        )
        found[branch] = found[branch].map(
            lambda ct, at=block.at_branch: ct.replace(coherence=at(ct.coherence))
        )
    return found


def _are_twins(ctx: RuleContext, node: Node, states: Sequence[State]) -> bool:
    """Whether two terms with means are made of one value, by weights of their own."""
    if not all(np.any(s.average().mean) for s in states):
        return False
    read = [_read(ctx, v) for v in node.inputs]
    return read[0] is not None and read[0] == read[1]


def _read(ctx: RuleContext, value: int) -> int | None:
    """Returns the one value that the weights behind a value read, if there is one."""
    while (node := ctx.producer(value)) is not None:
        if node.name in primitives.WEIGHT_OPERATIONS:
            return node.inputs[0]
        if node.name in ("add", "sub") and len(node.inputs) == 2:
            first, second = (_read(ctx, v) for v in node.inputs)
            return first if first == second else None
        if len(node.inputs) != 1 or node.name == "normalization":
            return None
        (value,) = node.inputs
    return None


def _at_twins(
    node: Node, states: Sequence[State], cotangents: Sequence[State]
) -> list[State]:
    """Returns the cotangents of two activations of one value, which meet there."""
    signs = (1.0, -1.0 if node.name == "sub" else 1.0)
    scale = max(s.average().log_scale for s in states)
    terms = [s.average().rescaled(scale).levels for s in states]
    terms = [(sign * m, second) for sign, (m, second) in zip(signs, terms, strict=True)]
    (first, _), (other, _) = terms
    whole = first + other, terms[0][1] + terms[1][1] + 2.0 * first * other
    found = []
    for term, sign, ct in zip(terms, signs, cotangents, strict=True):
        at = functools.partial(coherence.at_twin, whole=whole, term=term, sign=sign)
        found.append(ct.map(lambda f, at=at: f.replace(coherence=at(f.coherence))))
    return found


def _at_skip(
    cotangent: Field, block: Block, state: State, coherent: bool
) -> tuple[Field, float]:
    """Returns the cotangent of the value, and the error that is stated."""
    alike = _alike(cotangent, coherent)
    after, added = block.at_skip(cotangent.coherence, alike)
    added = max(added / state.channels, LEAST)
    got = cotangent.scaled(1.0 + added).replace(coherence=after.over(1.0 + added))
    return got, abs(float(np.log1p(added))) * (0.5 if alike == 1.0 else 1.0)


def _alike(cotangent: Field, coherent: bool) -> float:
    """Returns the mean correlation of a position's cotangent with those beside it."""
    if not cotangent.rank:
        return 1.0
    if all(len(v) == 1 for v in cotangent.lags):
        return 1.0 if coherent else 3.0**-cotangent.rank
    near = cotangent.correlations[2][lagging.nearest(cotangent.lags)]
    return float(np.clip(np.mean(near), 0.0, 1.0))


def _block(
    ctx: RuleContext, node: Node, states: Sequence[State], skip: int, branch: int
) -> Block | None:
    """Returns the moments of a sum that is x + f(W x); None of another."""
    x, f = states[skip].average(), states[branch].average()
    if not np.any(f.mean) or not x.levels[1] > 0.0 or not f.levels[1] > 0.0:
        return None
    between = ctx.between(node.inputs[skip], node.inputs[branch])
    # What a normalization passes on is at right angles to x.
    if not between or any(n.name == "normalization" for n in between):
        return None
    if own_channel.own_branch(ctx, node.inputs[skip], between) is not None:
        return None  # it has turned toward its own channel alone
    last = next(n for n in between if n.output == node.inputs[branch])
    mean, second = f.rescaled(x.log_scale).levels
    sign = -1.0 if node.name == "sub" else 1.0
    drift, follows = _turns(ctx, last)
    return Block(*x.levels, sign * mean, second, sign * mean * drift, follows, sign)


def _turns(ctx: RuleContext, last: Node) -> tuple[float, float]:
    """Returns E[u f'(u)] / E[f(u)] and the covariance with f(u) over its variance.

    1 for two slopes, as u f'(u) = f(u), and taken for 1 of what is no activation.
    """
    if last.name != "pointwise" or len(last.inputs) != 1:
        return 1.0, 1.0
    phi, slope = cached_float64(last.data)
    if two_slopes(phi) is not None:
        return 1.0, 1.0
    w, u, at, s = _at_nodes(ctx.state_of(last.inputs[0]).average(), phi, slope)
    mean = float(w @ at)
    if mean == 0.0:
        return 1.0, 1.0
    drift, along = _projection(w, u * s, at)
    return drift / mean, along / max(np.sqrt(float(w @ (at - mean) ** 2)), TINY)


def _at_nodes(
    value: Field, phi: Numeric, slope: Numeric
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns weights, u, phi(u) and its slope at the nodes of the law of u.

    What has two slopes does the same at any scale: u is left at that of the field.
    """
    u = profile.entries(value)
    if two_slopes(phi) is None:
        u = u * np.exp(np.clip(0.5 * value.log_scale, -300, 300))
    return marginal.weights(), u, phi(u), slope(u)
