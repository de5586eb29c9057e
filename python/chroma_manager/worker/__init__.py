"""What runs in an engine process: the program, and the open database that it serves.

An engine process is started with `-I -S` and loads Chroma's binding alone, so nothing is imported here. The Rust half
starts it (`src/engine/isolated/`); `engine.embedded` uses its `Database` in the app's own process.
"""
