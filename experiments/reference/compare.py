"""Comparing a replay with its recording: tolerances, largest errors, and what was left over."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from experiments.reference.case import Case, flatten

# Float32 against float32. Every error below is scaled so that this is its limit.
LIMIT = 1e-4

# Tensors compared as a whole, by ||difference|| / max(||reference||, floor). With the floor of
# parameters the limit is relative, and 1e-6 absolute where the reference's norm is below 1e-2.
# Moments of gradients are small by nature and have to agree at their own scale.
NORM_FLOORS = {'init': 1e-2, 'params': 1e-2, 'opt': 1e-7}

# All other floats are compared one by one, by |difference| / max(1, |reference|).

# Densities at samples that tanh has brought close to its bounds: what atanh makes of their last
# bit moves the mean by some 4e-4 (one sample of 0.99998 in 18). Reported as 'saturated'.
SATURATED_LIMIT = 1e-3
SATURATED = {('idql', 'pixel_bc'): r'info/\d+/entropy'}

# Replays that are off may be repeated with the recording's own rounding. Errors that this explains
# are reported as 'rounding'; of moments, into which all gradients went, it explains the rest less
# exactly.
ROUNDED_MOMENTS_LIMIT = 1e-3


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """Where float32 rounding decides, and how an agent's recordings are compared there.

    Attributes:
        left_out: pattern of parameters (and their moments) that are left out. Its only group is
            a layer's number; of otherwise equal names only the last layer's is meant.
        resume: continue every op from the recorded parameters, so that these leaves' noise does
            not spread.
        where: entries that a recording's config must have for any of this to apply.
    """

    left_out: str
    resume: bool
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# The last biases of psi shift all logits of a row alike: where only the softmax over the row
# counts, their gradient is zero but for rounding, which Adam turns into full steps. The target
# network's follow recorded values, and are compared.
_BIASES_OF_PSI = Conditioning(
    left_out=r'modules_critic/psi/(?:Dense|LayerNorm)_(\d+)/bias$', resume=True
)
ILL_CONDITIONED = {
    ('infom', 'td_infonce'): _BIASES_OF_PSI,
    # By default a penalty on the logits' size moves these biases, or the softmax over columns does.
    ('infom', 'crl_infonce'): dataclasses.replace(
        _BIASES_OF_PSI,
        where={'contrastive_loss': 'forward_infonce', 'logsumexp_penalty_coeff': 0.0},
    ),
}


def conditioning_of(system: str, agent: str, config: Mapping) -> Conditioning | None:
    """Return what is ill-conditioned about an agent's recordings with a config, if anything."""
    found = ILL_CONDITIONED.get((system, agent))
    if found is None or any(config.get(name) != value for name, value in found.where.items()):
        return None
    return found


def _is_last(pattern: str, name: str, names) -> bool:
    match = re.search(pattern, name)
    if match is None:
        return False
    before, after = name[: match.start(1)], name[match.end(1) :]
    siblings = (
        other[len(before) : len(other) - len(after)]
        for other in names
        if other.startswith(before) and other.endswith(after)
    )
    return int(match[1]) == max(int(number) for number in siblings if number.isdigit())


def error_of(kind: str, actual: np.ndarray, reference: np.ndarray) -> tuple[float, int]:
    """Return the scaled error of one tensor, and the flat index of its worst entry.

    Integers and booleans have to be equal: any difference is an infinite error. NaN matches only
    NaN, an infinity only itself.
    """
    if reference.size == 0:
        return 0.0, 0
    if reference.dtype.kind in 'iub':
        wrong = (actual != reference).reshape(-1)
        return (math.inf if wrong.any() else 0.0), int(wrong.argmax())
    actual, reference = actual.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(reference)
    same = np.isnan(reference) & np.isnan(actual) | (reference == actual)
    wrong = np.where(finite, ~np.isfinite(actual), ~same).reshape(-1)
    if wrong.any():
        return math.inf, int(wrong.argmax())
    difference = np.where(finite, actual, 0) - np.where(finite, reference, 0)
    reference = np.where(finite, reference, 0)
    if kind in NORM_FLOORS:
        scale = max(np.linalg.norm(reference), NORM_FLOORS[kind])
        return float(np.linalg.norm(difference) / scale), int(np.abs(difference).argmax())
    errors = np.abs(difference) / np.maximum(1, np.abs(reference))
    return float(errors.max()), int(errors.argmax())


class Report:
    """The outcome of one replay.

    Attributes:
        errors: the largest error of each kind, infinite where something exact differs.
        failures: what went wrong, in the order of the replay, one line each.
        left_out: names of the ill-conditioned tensors that were not compared.
        notes: what else is to be printed.
        stage: what is being replayed, for the message if it fails.
    """

    def __init__(self, case: Case):
        self.errors: dict[str, float] = {}
        self.failures: list[str] = []
        self.left_out: list[str] = []
        self.notes: list[str] = []
        self.stage = ''
        self._case = case
        self._compared: set[str] = set()
        self._conditioning = conditioning_of(case.system, case.agent, case.config)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def resume(self) -> bool:
        """Whether each op starts from the recorded parameters before it."""
        return self._conditioning is not None and self._conditioning.resume

    def fail(self, message: str) -> None:
        """Note a failure."""
        self.failures.append(message)

    def compare(self, kind: str, name: str, actual, rounded=None) -> None:
        """Compare one computed value with the recorded tensor `name`.

        Args:
            kind: under which the error is reported; it also decides the measure.
            rounded: the same value of a replay with the recording's rounding, if there was one.
        """
        reference = self._case.tensors.get(name)
        if reference is None:
            self.fail(f'{name}: computed, but not in the recording')
            return
        self._compared.add(name)
        if self._is_ill_conditioned(kind, name):
            self.left_out.append(name)
            return
        actual = _as_array(actual)
        if actual.shape != reference.shape:
            self.fail(f'{name}: shape {actual.shape}, recorded {reference.shape}')
            return
        if (actual.dtype.kind == 'f') != (reference.dtype.kind == 'f'):
            self.fail(f'{name}: {actual.dtype}, recorded {reference.dtype}')
            return
        error, worst = error_of(kind, actual, reference)
        limit = LIMIT
        if error > LIMIT and self._is_saturated(name):
            kind, limit = 'saturated', SATURATED_LIMIT
        if error > LIMIT and rounded is not None:
            actual, limit = _as_array(rounded), ROUNDED_MOMENTS_LIMIT if kind == 'opt' else LIMIT
            error, worst = error_of(kind, actual, reference)
            kind = 'rounding'
        self.errors[kind] = max(self.errors.get(kind, 0.0), error)
        if not error <= limit:
            self.fail(_difference(name, error, worst, actual, reference))

    def _is_saturated(self, name) -> bool:
        pattern = SATURATED.get((self._case.system, self._case.agent))
        return pattern is not None and re.fullmatch(pattern, name) is not None

    def _is_ill_conditioned(self, kind, name) -> bool:
        if self._conditioning is None or kind == 'init' or kind not in NORM_FLOORS:
            return False
        return _is_last(self._conditioning.left_out, name, self._case.tensors)

    def compare_tree(self, kind: str, prefix: str, tree) -> None:
        """Compare a tree with everything recorded below ``prefix/``; names must agree too."""
        actual = {f'{prefix}/{name}': leaf for name, leaf in flatten(tree).items()}
        for name in self._case.below(prefix):
            if name not in actual:
                self._compared.add(name)
                self.fail(f'{name}: recorded, but not computed')
        for name, leaf in actual.items():
            self.compare(kind, name, leaf)

    def finish(self) -> None:
        """Fail for every tensor that was neither compared nor an input."""
        rest = sorted(self._case.tensors.keys() - self._compared - self._case.consumed)
        if rest:
            others = f' and {len(rest) - 1} others' if len(rest) > 1 else ''
            self.fail(f'{rest[0]}{others}: nothing compared or used it')


def _as_array(value) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _difference(name, error, worst, actual, reference) -> str:
    index = ', '.join(str(i) for i in np.unravel_index(worst, reference.shape))
    at = f'[{index}]' if reference.shape else ''
    amount = f'error {error:.1e} > {LIMIT:.0e}' if math.isfinite(error) else 'must be equal'
    return (
        f'{name}{at}: {actual.reshape(-1)[worst]}, recorded {reference.reshape(-1)[worst]} '
        f'({amount})'
    )
