"""The commands of the command line, one file per command.

Each command has a ``SUMMARY``, an ``EXAMPLE``, ``SETTINGS`` (whether it takes RecBole's settings as ``--key=value``),
``add_arguments(parser)`` and ``execute(args)``, or ``execute(args, settings)``. Commands import PyTorch and RecBole in
``execute`` only, so that help and error messages come without delay.
"""
