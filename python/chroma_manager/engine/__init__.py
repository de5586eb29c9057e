"""What the engines need of Chroma's Python in the app's process.

The settings of a database, the interpreter on which its engine process runs, the binding of the embedded engine.
Called by the Rust half (`src/engine/`). What runs in an engine process is in `worker`.
"""
