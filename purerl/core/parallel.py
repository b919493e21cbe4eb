"""Several processes that train one agent, each on its rows of every batch (data parallelism).

    torchrun --nproc_per_node=4 program.py

    with parallel.processes(device):
        agent, info = parallel.step(update, agent, parallel.share(batch))

All processes hold the same agent; they divide the batch. `pmean` inside the update, the counterpart
of ``jax.lax.pmean``, makes the gradients those of the whole batch. In a single process every
function here is the identity, or the plain call, and adds nothing to a program.

`pmean` is an operator of its own: torch's functional collectives have no rule for ``vmap``, which
makes one message per member of them, and waits for none.
"""

import contextlib
import datetime
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from purerl.core import random, trees

_Result = TypeVar('_Result')

# Others wait while the first process evaluates or compiles. One that has failed does not keep them
# waiting: torchrun ends them.
_PATIENCE = datetime.timedelta(days=1)


def launched() -> int:
    """Return how many processes torchrun has started, whether they have joined yet or not."""
    if {'RANK', 'WORLD_SIZE'} <= os.environ.keys():
        return int(os.environ['WORLD_SIZE'])
    return size()


def device_of(name: str) -> str:
    """Return the device of this process: for 'cuda' the GPU of its number on its machine."""
    if name != 'cuda' or launched() == 1:
        return name
    return f'cuda:{os.environ.get("LOCAL_RANK", rank())}'


@contextlib.contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the processes that torchrun has started, before anything is traced.

    Those besides the first print nothing, apart from what ends them. Where the program has
    initialised ``torch.distributed`` itself, its processes are taken.

    Args:
        device: what they compute on, as for `device_of`.
    """
    joins = launched() > 1 and not dist.is_initialized()
    if joins:
        backend = 'gloo'
        if torch.device(device).type == 'cuda':
            backend = 'cpu:gloo,cuda:nccl'  # what the host asks waits for no GPU
            torch.cuda.set_device(device_of(device))
        dist.init_process_group(backend, timeout=_PATIENCE)
    with _quiet() if rank() else contextlib.nullcontext():
        yield
    # Not after an error: nccl may wait for the processes that have none.
    if joins:
        dist.all_reduce(torch.zeros(()))  # none hangs up on one that still talks
        dist.destroy_process_group()


@contextlib.contextmanager
def _quiet():
    with (
        open(os.devnull, 'w') as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


# --- In updates ----------------------------------------------------------------------------------


@torch.library.custom_op('purerl::pmean', mutates_args=())
def _pmean(x: torch.Tensor) -> torch.Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total.div_(size())


@_pmean.register_fake
def _(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_pmean.register_vmap
def _(info, in_dims, x):
    return _pmean(x), in_dims[0]


def pmean(tree):
    """Average a tree over the processes; the counterpart of ``jax.lax.pmean``.

    All processes have to call it, in the same order. Nothing differentiates through it.

    Args:
        tree: a pytree, of the same structure and shapes in every process.

    Returns:
        The tree with the averages of its floating-point tensors, bit for bit the same everywhere;
        other leaves stay as they are. The tree itself in a single process.
    """
    if size() == 1:
        return tree
    leaves, treedef = trees.flatten(tree)
    floats = [leaf for leaf in leaves if _is_float(leaf)]
    if not floats:
        return tree
    # One flat buffer: a hundred small messages would take longer than one large one.
    flat = torch.cat([leaf.reshape(-1) for leaf in floats])
    means = iter(_pmean(flat).split([leaf.numel() for leaf in floats]))
    leaves = [
        next(means).reshape(leaf.shape).to(leaf.dtype) if _is_float(leaf) else leaf
        for leaf in leaves
    ]
    return trees.unflatten(treedef, leaves)


def _is_float(leaf) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def share(batch):
    """Return this process's rows of a batch: every `size`-th, from the one of its rank on.

    Args:
        batch: tree of arrays or tensors, whole and the same in every process.

    Raises:
        ValueError: if the rows cannot be divided evenly.
    """
    if size() == 1:
        return batch

    def rows_of(array):
        if len(array) % size():
            raise ValueError(f'{len(array)} rows cannot be divided among {size()} processes')
        return array[rank() :: size()]

    return trees.map(rows_of, batch)


def apart(agent):
    """Return the agent with a key of this process's own; the first process keeps the agent's.

    Args:
        agent: an agent, or stacked ones, with the key `rng`.
    """
    # Counted from the top: fold_in(key, 1) is split(key)[1], which the first process draws from.
    return agent.replace(rng=random.fold_in(agent.rng, -rank())) if rank() else agent


def step(update: Callable, agent, batch) -> tuple:
    """Take one step together: each process on rows and with noise of its own.

    Args:
        update: `update(agent, batch) -> (agent, info)`, which averages gradients
            (`TrainState.apply_gradients` does) and whatever else the agent keeps of the batch.
        agent: an agent, or stacked ones, with the key `rng`; the same in all processes.
        batch: this process's share.

    Returns:
        The agent, the same in all processes, and this process's info.
    """
    if size() == 1:
        return update(agent, batch)
    agent, info = update(apart(agent), batch)
    # What the first process's key has become is what it would have become in a single process.
    key = agent.rng.clone()
    dist.broadcast(key, src=0)
    return agent.replace(rng=key), info


# --- Between updates -----------------------------------------------------------------------------


def first(call: Callable[[], _Result]) -> _Result:
    """Call something in the first process only, while the others wait.

    Args:
        call: function without arguments; its result must be picklable.

    Returns:
        Its result, in all processes.

    Raises:
        SystemExit: in the others, if the call raises an error.
    """
    if size() == 1:
        return call()
    outcome = [None]
    try:
        if rank() == 0:
            outcome = [(call(),)]
    finally:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is None:
        raise SystemExit(1)
    return outcome[0][0]


def largest(number: int) -> int:
    """Return the largest of the integers that the processes call this with."""
    if size() == 1:
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number.item()


def difference(tree) -> str | None:
    """Return the path of a leaf that differs between processes, in any bit; None if none does.

    Args:
        tree: a pytree of tensors, of the same structure in every process.
    """
    if size() == 1:
        return None
    pairs = trees.leaves_with_path(tree)
    digests = torch.tensor([_digest(leaf) for _, leaf in pairs])
    gathered = [torch.empty_like(digests) for _ in range(size())]
    dist.all_gather(gathered, digests)
    differs = (torch.stack(gathered) != gathered[0]).any(0).tolist()
    return next(('/'.join(path) for (path, _), d in zip(pairs, differs, strict=True) if d), None)


def _digest(leaf: torch.Tensor) -> int:
    content = leaf.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), 'little', signed=True)
