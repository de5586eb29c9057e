"""The part of the engines that uses Chroma's Python in the app's process.

The settings of a database, the interpreter on which its engine process runs, the binding of the engine `embedded`.
Called by the Rust half (`src/engine/`). What runs in an engine process is in `worker`.
"""
