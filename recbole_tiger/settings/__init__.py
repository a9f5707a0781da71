"""Settings: the property files, what a user writes, RecBole's Config of both, and what tells runs apart."""

from recbole_tiger.settings.properties import protocol

__all__ = ["protocol"]
