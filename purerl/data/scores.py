"""D4RL's reference scores, to which it normalises returns.

A normalised score of 0 is a random policy's return, one of 100 an expert's. Source of the figures:
``d4rl/infos.py`` of Farama-Foundation/D4RL @ 0ace16d; all versions and qualities of a domain share
them. They were measured in the environments of D4RL (MuJoCo 2.1 at the latest): the returns of
gymnasium's Hopper-v5, HalfCheetah-v5 and so on are close to theirs, not the same.
"""

# Domain, as the name of a task begins: (random policy's return, expert's return).
REFERENCES = {
    'halfcheetah': (-280.178953, 12135.0),
    'hopper': (-20.272305, 3234.3),
    'walker2d': (1.629008, 4592.3),
    'ant': (-325.6, 3879.7),
    'antmaze': (0.0, 1.0),
    'maze2d-open': (0.01, 20.66),
    'maze2d-umaze': (23.85, 161.86),
    'maze2d-medium': (13.13, 277.39),
    'maze2d-large': (6.7, 273.99),
    'maze2d-open-dense': (11.17817, 27.166538620695782),
    'maze2d-umaze-dense': (68.537689, 193.66285642381482),
    'maze2d-medium-dense': (44.264742, 297.4552547777125),
    'maze2d-large-dense': (30.569041, 303.4857382709002),
    'pen': (96.262799, 3076.8331017826877),
    'hammer': (-274.856578, 12794.134825156867),
    'door': (-56.512833, 2880.5693087298737),
    'relocate': (-6.425911, 4233.877797728884),
    'kitchen': (0.0, 4.0),
}


def reference(env_name: str) -> tuple[float, float] | None:
    """Return the returns of a random policy and an expert in a task, None where D4RL has none.

    Args:
        env_name: a name of D4RL (hopper-medium-v2) or of gymnasium (Hopper-v5). The sparse
            'binary' tasks have no scores, and OGBench's have none of these.
    """
    parts = env_name.lower().rpartition(':')[2].split('-')
    if 'binary' in parts or 'singletask' in parts:
        return None
    names = ['-'.join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((REFERENCES[name] for name in names if name in REFERENCES), None)


def normalized_score(env_name: str, episode_return: float) -> float | None:
    """Return a return in percent of the way from a random policy to an expert.

    Args:
        env_name: as in `reference`.
        episode_return: undiscounted return.

    Returns:
        The score; None where D4RL has no references.
    """
    references = reference(env_name)
    if references is None:
        return None
    low, high = references
    return 100.0 * (episode_return - low) / (high - low)
