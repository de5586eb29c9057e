"""What is on the disk, Chroma's files and ours, and how it is read and written.

Paths, durable changes of files, small files with a checksum, Chroma's log and catalog, the files of an index and where
vectors are found. Nothing is decided here: when a checkpoint is taken, or a database repaired, is decided above.
Everything above may call it.
"""
