"""The commands of the command line: one file a command.

Each has its ``SUMMARY``, an ``EXAMPLE``, ``SETTINGS`` (whether it takes RecBole's settings as ``--key=value``),
``add_arguments(parser)`` and ``execute(args)``, or ``execute(args, settings)``. What it works with it imports when it is
executed, so that help and mistakes are answered without PyTorch and RecBole.
"""
