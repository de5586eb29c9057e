"""Whether a database is sound, and what is done about one that is not.

`verify` compares files, `probing` has Chroma read them, `repair` rebuilds what is damaged. Called by `worker`, and by
`engine.embedded` in the app's own process.
"""
