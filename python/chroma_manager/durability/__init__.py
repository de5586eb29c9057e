"""What keeps a database from being lost.

Checkpoints of its vector indexes and the proof that they are complete, recovery after a crash, snapshots, restores,
and the journal of a batch that was interrupted. The formats of the files are in `storage`. Called by `verification`
and `worker`.
"""
