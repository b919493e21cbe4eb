"""Variants of an agent to evaluate: other values of fields that only acting reads.

    N=16,64,256;M=0     three variants, named by what differs between them: N=16, N=64, N=256

Several fields with several values make every combination, the first field varying fastest, as
``launcher/hyperparameters.py`` of philippe-eecs/IDQL @ 7582571 makes them.
"""

import difflib
import itertools
import math
from typing import NamedTuple

import torch

from purerl.train.config import Agent, RunError

_LOWEST = {'N': 1, 'T': 1, 'M': 0}  # of a diffusion policy: candidates, steps, repeated last steps
_BOOLEANS = {'true': True, 'false': False}


class Variant(NamedTuple):
    """How an agent is changed for an evaluation.

    Attributes:
        name: tells it from the other variants; empty where there is one.
        changes: values by field.
    """

    name: str
    changes: dict

    def apply(self, agent):
        """Return the changed agent; the one that is trained stays as it is."""
        changes = {}
        for field, value in self.changes.items():
            is_tensor = isinstance(getattr(agent, field), torch.Tensor)
            changes[field] = torch.tensor(value) if is_tensor else value
        return agent.replace(**changes)


def parse(text: str | None, agent: Agent) -> list[Variant]:
    """Read variants from a flag.

    Args:
        text: ``<field>=<value>,<value>...;<field>=...``; None or '' for the agent as it is.
        agent: the agent that is trained; its class's `acting_fields` can be varied.

    Returns:
        The variants, at least one.

    Raises:
        RunError: for a field that the agent does not have, or a value that it cannot take.
    """
    grid = {}
    for entry in (text or '').replace(' ', '').split(';'):
        if entry:
            field, _, values = entry.partition('=')
            _check_field(field, agent, entry)
            if field in grid:
                raise RunError(f'inference_variants: {field} is given twice')
            grid[field] = [_value(agent.config, field, value) for value in values.split(',')]
            if len(set(grid[field])) < len(grid[field]):
                raise RunError(f'inference_variants: {entry!r} gives a value twice')
    several = [field for field, values in grid.items() if len(values) > 1]
    variants = []
    for combination in itertools.product(*reversed(grid.values())):
        changes = dict(zip(grid, reversed(combination), strict=True))
        variants.append(Variant(','.join(f'{f}={changes[f]}' for f in several), changes))
    return variants


def _check_field(field, agent, entry):
    fields = getattr(agent.agent_class, 'acting_fields', ())
    if field not in fields:
        near = difflib.get_close_matches(field, fields, n=1)
        has = f'which has: {", ".join(fields)}' if fields else 'which has none'
        hint = f"; did you mean '{near[0]}'?" if near else f', {has}'
        raise RunError(
            f'inference_variants: {entry!r} does not name a field of {agent.path} that can be '
            f'changed after training{hint}'
        )


def _value(config, field, text):
    current = config[field]
    try:
        value = _BOOLEANS[text.lower()] if isinstance(current, bool) else type(current)(text)
    except (KeyError, TypeError, ValueError):
        raise RunError(
            f'inference_variants: {field}={text} is no {type(current).__name__}, which '
            f'{field}={current} is'
        ) from None
    if not math.isfinite(value):
        raise RunError(f'inference_variants: {field} must be finite, not {value}')
    lowest = _LOWEST.get(field)
    if lowest is not None and value < lowest:
        raise RunError(f'inference_variants: {field} must be at least {lowest}, not {value}')
    if field == 'T' and value > current:
        raise RunError(
            f'inference_variants: T={value} is more than the {current} steps of the schedule that '
            'the agent is trained with'
        )
    return value
