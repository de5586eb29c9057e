"""The command ``chroma-manager``: its arguments, and what each of its commands does.

It uses the manager as any app does. Results go to stdout, messages to stderr; the exit codes are in `arguments`.
"""
