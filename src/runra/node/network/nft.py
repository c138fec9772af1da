"""nftables through libnftables in this process: a rule change in a tenth of a millisecond, no program started.

Library: Debian's libnftables1. A context keeps a netlink socket of the namespace it was made in, and is used by one
thread at a time.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
from typing import Final

from runra.errors import RunraError

_NAMES: Final = ("libnftables.so.1", "libnftables.so")
_NETLINK_NETFILTER: Final = 12


def _library() -> ctypes.CDLL:
    for name in (*_NAMES, ctypes.util.find_library("nftables")):
        if name is None:
            continue
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        for call in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_get_error_buffer", "nft_ctx_free"):
            getattr(library, call).argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_output_buffer.argtypes = [ctypes.c_void_p]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        return library
    raise RunraError("INVALID_CONFIG", "no libnftables: apt-get install libnftables1")


def _require_netfilter() -> None:
    """Without it libnftables does not fail, it ends the process."""
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER).close()
    except OSError:
        raise RunraError("INVALID_CONFIG", "this kernel has no nf_tables: modprobe nf_tables") from None


class Nft:
    """One context. `run` takes nft's own language; all of one call is applied, or nothing of it."""

    def __init__(self) -> None:
        self._library = _library()
        _require_netfilter()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise RunraError("INVALID_CONFIG", "libnftables gave no context: the kernel has no nf_tables, or no memory")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> str:
        """Apply them; returns what `list` commands show. Raises INTERNAL_ERROR with the library's words."""
        status = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        # Both are read each time: reading is what empties them.
        said = (self._library.nft_ctx_get_output_buffer(self._context) or b"").decode(errors="replace")
        wrong = (self._library.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace").strip()
        if status != 0:
            raise RunraError("INTERNAL_ERROR", f"nftables refused a change: {wrong[:500]}")
        return said

    def close(self) -> None:
        self._library.nft_ctx_free(self._context)
