"""Source lines as they are shown: a report is read on other machines too."""

import re


# A file's absolute path, as it stands in a text before a line's number.
_FILE = re.compile(
    r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\\/:\s][^\\/:\n]*[\\/])*"
    r"(?P<kept>[^\\/:\s][^\\/:\n]*[\\/][^\\/:\n]+:\d+)"
)
_OWN = "layerwise/tracing/model.py"


def short(text: str) -> str:
    """Returns a text with the last two parts of each file's path.

    >>> short("add at /home/me/lib/nets/unet.py:12 (UNet.__call__), behind Conv_0")
    'add at nets/unet.py:12 (UNet.__call__), behind Conv_0'
    """
    return _FILE.sub(lambda found: found["kept"], text)


def short_line(source: str) -> str:
    """Returns a source line as folder/file.py:12 (function), "" where it is none.

    A model with no line of its own (`nn.Sequential`) has only that which calls it here.
    """
    return "" if source.partition(":")[0].endswith(_OWN) else short(source)
