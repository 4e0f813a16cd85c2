"""Files that are whole or absent: whoever opens one never sees the half that was written when the power went.

And arrays of NumPy's from strangers, whose damage has many names.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RunError

DAMAGED_ARRAY: tuple[type[Exception], ...] = (EOFError, SyntaxError, TypeError, AttributeError, ArithmeticError)
DAMAGED_ARRAY += (RuntimeError, MemoryError, tokenize.TokenError, zipfile.BadZipFile)
"""What NumPy raises on a file whose header is damaged, which is Python to its parser; besides OSError, ValueError."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` when the block ends well and vanishes when it does not.

    Missing folders are made. An OSError (disk full, no permission, a file where a folder should be) becomes a RunError.

        with whole_file(Path("eval.json")) as partial:
            partial.write_text(text)
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        # The rename is atomic, but without this the content may reach the disk after the new name does.
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def mapped_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file, mapped and read-only. Raises OSError, and ValueError for whatever is no such file.

    Mapped, so that a header that promises terabytes meets the size of the file, not of the memory.
    """
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except DAMAGED_ARRAY as error:
        raise ValueError(f"it is not an array of NumPy ({error})") from error
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of arrays, not one array")
    return array
