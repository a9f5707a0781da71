"""The models, which predict items from semantic IDs."""

from recbole_tiger.errors import TigerError
from recbole_tiger.registry import Registry

MODELS = Registry("model", TIGER="recbole_tiger.model.tiger.TIGER", VQRec="recbole_tiger.model.vqrec.VQRec")


def register_model(cls, settings=None):
    """Add a model from outside of this package to MODELS, under the name of its class.

    Args:
        cls: subclass of :class:`~recbole_tiger.model.base.SemanticIDModel`; a subclass of a model of MODELS inherits its
            settings.
        settings: its own settings and their defaults, a dict or the path of a YAML file like those in ``properties/model``.

    Raises:
        TigerError: ``cls`` is not such a class, or its name is taken.
    """
    from recbole_tiger.model.base import SemanticIDModel
    from recbole_tiger.settings.properties import recbole_models

    if not isinstance(cls, type) or not issubclass(cls, SemanticIDModel):
        raise TigerError(f"{cls!r} is no subclass of SemanticIDModel: derive it from that, see recbole_tiger/model/base.py")
    # RecBole finds a model by its name in lower case.
    if there := [name for name in recbole_models() if name.lower() == cls.__name__.lower()]:
        raise TigerError(f"RecBole has a model called {there[0]}: choose another name than {cls.__name__}")
    MODELS.register(cls.__name__, cls, settings or {})
