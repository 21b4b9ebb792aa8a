"""The pure core: everything that decides. No clock, socket, thread, random source or logger is imported here.

Time enters as integer nanoseconds inside each event, effects leave as values. The journal is the only thing that
changes state: ``Node.step`` decides records, ``fold.apply`` folds them, and replay is the same fold.
"""
