"""The version of the distribution, and of the plugin API."""

__version__ = "0.1.0"

API = 1
"""Version of the plugin API. A plugin made for another one is refused at load."""
