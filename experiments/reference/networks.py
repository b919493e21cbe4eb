"""What replays of jaxrl5's networks share: initial parameters, and the keys of dropout."""

from experiments.reference.case import Case, CaseError, flatten
from experiments.reference.compare import Report
from purerl.core import nn, random


def initialised(case: Case, report: Report, prefix: str, module: nn.Module, inputs) -> dict:
    """Compare the initial parameters; return those that the recording runs on.

    Raises:
        CaseError: if these are not the module's.
    """
    initial = nn.init(module, case.take(f'{prefix}/in/init_key'), *inputs)
    report.compare_tree('init', f'{prefix}/init', initial)
    params = case.take_tree(f'{prefix}/params')
    if flatten(params).keys() != flatten(initial).keys():
        raise CaseError(f'{prefix}/params does not hold the parameters of the module')
    return params


def dropout_keys(case: Case, report: Report, prefix: str, entry: dict, members) -> dict:
    """Compare each dropout layer's key; return the streams for `nn.apply`.

    Args:
        entry: the description, with the layers' paths as `dropout_rng_paths`.
        members: how many there are in the ensemble around them; None without one.
    """
    if f'{prefix}/in/dropout_key' not in case.tensors:
        return {}
    key = case.take(f'{prefix}/in/dropout_key')
    layer_keys = key if members is None else random.split(key, members)
    for i, path in enumerate(entry['dropout_rng_paths']):
        # The count of draws in that layer follows the path.
        folded = nn.fold_in_path(layer_keys, (*path.split('/'), 1))
        report.compare('key', f'{prefix}/rng/dropout_{i}', folded)
    return {'dropout': key}
