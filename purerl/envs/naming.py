"""Names of environments: that of one at hand, and those nearest to an unknown one."""

import difflib


def name_of(env):
    """Returns a `gymnasium.Env`'s id, or its class's name where it has none."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def nearest(name, names):
    """Returns the part of an error message that says which of `names` are like an unknown one."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f'the nearest names are {", ".join(near)}' if near else 'no name is similar'
