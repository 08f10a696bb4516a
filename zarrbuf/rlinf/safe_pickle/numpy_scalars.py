"""NumPy numbers in a pickle: a dtype by its name, and the bytes of one number.

Owns what `numpy.dtype` and `scalar` mean here. Nothing of a pickle's choice is made:
the dtypes are those of a fixed list, and their state must be the one they have.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zarrbuf.errors import FormatError
from zarrbuf.rlinf.safe_pickle.machine import Call, Fixed, Job
from zarrbuf.trajectory.plain_values import NUMPY_SCALARS

_BY_CODE: Final = {np.dtype(one).str[1:]: np.dtype(one) for one in NUMPY_SCALARS}


class _Dtype(Fixed):
    """A dtype of the list. BUILD may tell its byte order, little or none."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = code

    def check_state(self, state: object) -> None:
        if type(state) is not tuple or len(state) != 8:
            raise FormatError("a NumPy dtype has another state than plain numbers have")
        version, order, *rest = state
        if (
            type(version) is not int
            or version != 3
            or type(order) is not str
            or order not in ("<", "|")
            or rest != [None, None, None, -1, -1, 0]
        ):
            raise FormatError("a NumPy dtype has another state than plain numbers have")


class _MakeDtype(Call):
    __slots__ = ()

    def __call__(self, job: Job, args: tuple[object, ...]) -> object:
        if len(args) != 3 or type(args[0]) is not str or args[0] not in _BY_CODE:
            raise FormatError(f"numpy.dtype is one of {', '.join(_BY_CODE)} here")
        return _Dtype(args[0])


class _MakeScalar(Call):
    __slots__ = ()

    def __call__(self, job: Job, args: tuple[object, ...]) -> object:
        if (
            len(args) != 2
            or not isinstance(args[0], _Dtype)
            or not isinstance(args[1], bytes)
            or len(args[1]) != _BY_CODE[args[0].code].itemsize
        ):
            raise FormatError("a NumPy scalar is a dtype and as many bytes as it has")
        dtype = _BY_CODE[args[0].code]
        return np.frombuffer(args[1], dtype.newbyteorder("<")).astype(dtype)[0]


NUMPY_CALLS: Final = {
    ("numpy", "dtype"): _MakeDtype(),
    ("numpy._core.multiarray", "scalar"): _MakeScalar(),
    ("numpy.core.multiarray", "scalar"): _MakeScalar(),  # NumPy 1
}
