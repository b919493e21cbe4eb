"""TD3 with the original's values."""

from purerl.agents.jaxrl5 import td3
from purerl.agents.jaxrl5.td3 import TD3Learner  # noqa: F401  (the agent that this configures)


def get_config():
    """Return the original's td3_config.py."""
    return td3.get_config()
