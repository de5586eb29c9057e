"""The main job of the package on real text: ``chroma-manager demo``.

A corpus is embedded and ingested in threads, then queried. The demo uses the manager as any app does.
"""
