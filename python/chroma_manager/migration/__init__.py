"""Copies instances between a base path, a Chroma server and a tree of plain Chroma directories.

| file | what lives there |
| --- | --- |
| `places.py` | where instances are: how they are found, opened and created there |
| `trees.py` | which keys the databases of a plain directory tree get |
| `outside.py` | what a directory has outside its instance, which is not copied |
| `copying.py` | an instance is copied, collection by collection, and compared |
| `collections.py` | a collection as it is stored: its metadata, its configuration, its records |
| `records.py` | a record, and whether another one has the same content |
| `writing.py` | records are written, in requests that the destination takes |
| `schemas.py` | what is special about the schema of a collection |

Nothing is ever deleted or overwritten by anything but the source's newer record of the same id. What the command
`chroma-manager migrate` takes and prints is in `cli/`.
"""
