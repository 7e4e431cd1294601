"""Where moments are stated: the named values of a traced model, in program order."""

import dataclasses

import jax.numpy as jnp

from layerwise.tracing.layers import Layer, Lookup, Loop, TracedModel


@dataclasses.dataclass(frozen=True)
class NamedValue:
    """A value of the program with its place in the network.

    Attributes:
        value: Its number in the graph.
        layer: Number of the layer that it belongs to; 0 for the input.
        path: Path of the layer or embedding, or the primitive of a merge.
        kind: "input", "u" (pre-activation, after the bias), "v" (after the activation),
            "z" (after the pooling), "embedding" (rows of a parameter, chosen by the
            data), or "merge" (a sum, product or concatenation).
        shape: Shape of the value, batch included.
        source: The user's source line.
        iteration: The iteration of each scan around it, outermost first.
    """

    value: int
    layer: int
    path: str
    kind: str
    shape: tuple[int, ...]
    source: str
    iteration: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class LayerRun:
    """One execution of a layer: layers in loops run more than once.

    Attributes:
        layer: The layer.
        number: 1 for the first that the program runs, and so on.
        path: The layer's path, with ``[i]`` for each scan around it.
        iteration: The iteration of each scan around it, outermost first.
    """

    layer: Layer
    number: int
    path: str
    iteration: tuple[int, ...]


def named_values(traced: TracedModel) -> tuple[NamedValue, ...]:
    """Returns the input, layers' u, v and z, embeddings and merges; no loop's."""
    return tuple(n for n in all_values(traced) if n.value in traced.graph.avals)


def all_values(traced: TracedModel) -> tuple[NamedValue, ...]:
    """Returns the same with the values in loops and branches.

    A value in a scan is there once for each iteration, one in a while or in a branch
    of a cond once.
    """
    found: list[NamedValue] = []
    value = traced.signal_input
    if value is not None:
        shape = tuple(traced.graph.avals[value].shape)
        found.append(NamedValue(value, 0, "input", "input", shape, ""))
    return tuple(found + _Walk().part(traced, ())[0])


def layer_runs(traced: TracedModel) -> tuple[LayerRun, ...]:
    """Returns every execution of a layer, in program order."""
    return tuple(_Walk().part(traced, ())[1])


class _Walk:
    """Walks the program in order, loops iteration by iteration, and counts layers."""

    def __init__(self) -> None:
        self.count = 0

    def part(
        self, part: TracedModel | Loop, iteration: tuple[int, ...]
    ) -> tuple[list[NamedValue], list[LayerRun]]:
        values: list[tuple[int, list[NamedValue]]] = []
        runs: list[LayerRun] = []
        suffix = "".join(f"[{i}]" for i in iteration)
        producers = part.graph.producers()

        def add(value: int, path: str, kind: str, source: str) -> None:
            aval = part.graph.avals[value]
            if jnp.issubdtype(aval.dtype, jnp.floating):
                shape = tuple(aval.shape)
                number = max(self.count, 1)
                at = NamedValue(value, number, path, kind, shape, source, iteration)
                values.append((value, [at]))

        for start, item in sorted(_items(part), key=lambda pair: pair[0]):
            if isinstance(item, Layer):
                self.count += 1
                path = item.path + suffix
                runs.append(LayerRun(item, self.count, path, iteration))
                add(item.u, path, "u", item.source)
                if item.v != item.u:
                    add(item.v, path, "v", item.source)
                if item.z != item.v:
                    add(item.z, path, "z", item.source)
            elif isinstance(item, Lookup):
                add(item.root, item.path + suffix, "embedding", item.source)
            elif isinstance(item, Loop):
                counted = item.equation.name == "scan"
                for i in range(item.length):
                    at = (*iteration, i) if counted else iteration
                    inner, again = self.part(item, at)
                    values.append((start, inner))
                    runs += again
            else:
                equation = producers[item]
                add(item, equation.name + suffix, "merge", equation.source)
        values.sort(key=lambda pair: pair[0])
        return [at for _, some in values for at in some], runs


_Item = Layer | Lookup | Loop | int


def _items(part: TracedModel | Loop) -> list[tuple[int, _Item]]:
    """Returns layers, embeddings, loops and merges, each with its first value."""
    items: list[tuple[int, _Item]] = [(y.root, y) for y in part.layers]
    items += [(y.root, y) for y in part.lookups]
    items += [(loop.equation.outputs[0], loop) for loop in part.loops]
    producers = part.graph.producers()
    for v, kind in part.flow.kind.items():
        # What a scan returns is what its body's last iteration made; a branch or a
        # while may not have run.
        branched = kind == "loop" and producers[v].name in ("cond", "while")
        if kind == "merge" or branched:
            items.append((v, v))
    return items
