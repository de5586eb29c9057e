"""Whether a database is sound, what is done about one that is not, and how one is rebuilt without what was deleted.

`verify` compares files, `probing` has Chroma read them, `repair` rebuilds what is damaged, `compaction` what has become
too large. Called by `worker`, and by `engine.embedded` in the app's own process.
"""
