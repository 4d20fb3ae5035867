"""The commands of the command line, one module each.

A module's `add` says what options the command has; its function parses them, calls one function of
the library and prints. Nothing is computed here, and what is slow to import is imported on use.
"""
