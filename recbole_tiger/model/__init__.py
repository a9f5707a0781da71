"""The models: tensors of codes -> probabilities of items."""

from recbole_tiger.registry import Registry

MODELS = Registry("model", TIGER="recbole_tiger.model.tiger.TIGER", VQRec="recbole_tiger.model.vqrec.VQRec")
