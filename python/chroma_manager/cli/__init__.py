"""The command ``chroma-manager``: its arguments, and what each of its commands does.

It uses the manager as any app does.
"""
