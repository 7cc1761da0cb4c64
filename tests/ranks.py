"""Several connected processes of a run, for tests."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from sae_kit.dist import World, joined


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def launcher_says(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process by its environment."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def in_ranks(function: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """What `function(world, *arguments)` returns in each of `size` connected processes."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["sae_kit.train.trainer", "torch._dynamo"])
    port = free_port()
    with ProcessPoolExecutor(size, mp_context=context) as pool:
        members = [
            pool.submit(_member, function, rank, size, port, arguments) for rank in range(size)
        ]
        return [member.result(timeout=120) for member in members]


def _member(
    function: Callable[..., Any], rank: int, size: int, port: int, arguments: tuple[Any, ...]
) -> Any:
    os.environ.update(launcher_says(rank, size, port))
    torch.set_num_threads(1)
    with joined() as here:
        assert here == World(rank, size)
        return function(here, *arguments)
