"""What a run is: the settings, their presets and budgets, and their JSON."""

from retain.config.schema import *  # noqa: F403
from retain.config.schema import __all__ as __all__
