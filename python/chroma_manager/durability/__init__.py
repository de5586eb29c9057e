"""What keeps a database from being lost: `lifecycle` says what is done before an opening and after a closing.

Checkpoints of the vector indexes and the proof that they are complete, recovery after a crash, snapshots, restores, and
the journals of interrupted batches. The formats of the files are in `storage`; examining and repairing damage is in
`verification`. Called by `verification` and `worker`.
"""
