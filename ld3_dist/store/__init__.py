"""Where things are kept: pair shards, result tables, schedule files, and the lock of an output
folder.
"""
