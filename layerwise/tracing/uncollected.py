"""The garbage collector put off for as long as a trace or a prediction takes."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Puts off the cyclic garbage collector; as a decorator, during a function.

    A deep model's trace makes millions of objects, nearly all of which it keeps.
    Looking through them again and again takes a quarter of the time, and finds nothing.
    A prediction over ten thousand layers keeps its moments, likewise: a tenth.
    Threads that overlap leave the collector as the first of them found it.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
