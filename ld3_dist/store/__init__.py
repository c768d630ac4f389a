"""Storage of pair shards, result tables and schedule files, and the lock of an output folder."""
