"""The ``streamchar`` command. Importing this package loads nothing; the command is in :mod:`.main`."""
