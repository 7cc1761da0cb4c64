"""Keeping freed memory: fewer page faults, and no harm where there is no such switch."""

import ctypes
import platform
import subprocess
import sys

import pytest

from sae_kit.train import allocator

FAULTS = """
import ctypes, resource, sys
if sys.argv[1] == "keep":
    {keep}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def use(n_bytes):
    block = libc.malloc(n_bytes)
    libc.memset(block, 1, n_bytes)
    libc.free(block)
use(64 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use(64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_a_freed_block_is_used_again():
    """Four blocks of 64 MB are 65,536 pages of 4 KB; each is touched, and faults if it is new."""
    # By its path: the package would import PyTorch, and take seconds.
    keep = f"import runpy; runpy.run_path({allocator.__file__!r})['keep_freed_memory']()"
    code = FAULTS.format(keep=keep)
    faults = {}
    for how in ("keep", "return"):
        done = subprocess.run(
            [sys.executable, "-c", code, how], capture_output=True, text=True, check=True
        )
        faults[how] = int(done.stdout)
    # With huge pages there are fewer faults to begin with, but still none to spare.
    assert faults["keep"] < 0.05 * faults["return"]


HOLES = """
import ctypes, os, runpy
own = runpy.run_path({file!r})
own["keep_freed_memory"]()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
blocks = [libc.malloc(2 << 20) for _ in range(100)]
for block in blocks:
    libc.memset(block, 1, 2 << 20)
for block in blocks[::2]:
    libc.free(block)
before = resident()
own["give_back_memory"]()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_holes_are_given_back():
    """Every second block of 2 MB is free, 100 MB in all."""
    code = HOLES.format(file=allocator.__file__)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 80


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("looked for a C library"))
    allocator.keep_freed_memory()
    allocator.give_back_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    class Musl:
        pass

    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Musl())
    allocator.keep_freed_memory()
    allocator.give_back_memory()
