"""What is on the disk, Chroma's files and ours, and how it is read and written.

Paths, files that survive a crash, small files with a checksum, Chroma's log and catalog, the files of an HNSW index.
Nothing is decided here: when a checkpoint is taken, or a database repaired, is decided above. Everybody may call it.
"""
