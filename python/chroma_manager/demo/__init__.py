"""The main job on real text, ``chroma-manager demo``.

A corpus is embedded and ingested in threads, then asked. It uses the manager as any app does.
"""
