"""The memory of what is timed stays mapped from call to call.

By default glibc keeps up to 64 MB of freed memory and maps what is more anew, page by
page, at every call. Then one variant pays for 20,000 page faults, a third of its time,
and another, whose temporaries are a little smaller, for none: what is compared is the
side of that limit on which they fall. Elsewhere than on glibc the settings do nothing.
"""

import os
import sys
from collections.abc import Mapping


KEPT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**28),
}


def keep() -> None:
    """Starts this program anew with freed memory kept, unless it runs so already."""
    if not KEPT.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | KEPT)


def as_usual() -> Mapping[str, str]:
    """Returns the environment without those settings, for another process."""
    return {k: v for k, v in os.environ.items() if k not in KEPT}
