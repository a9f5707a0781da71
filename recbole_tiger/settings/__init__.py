"""Settings: the property files, the user's settings, RecBole's Config of both, and the identity of runs."""

from recbole_tiger.settings.properties import protocol

__all__ = ["protocol"]
