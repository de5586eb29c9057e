"""Whether a database is sound, and what is done about one that is not.

`verify` compares, `repair` rebuilds. Called by `worker`, and by `engine.embedded` in the app's own process.
"""
