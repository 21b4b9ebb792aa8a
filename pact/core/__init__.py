"""The pure core: all decisions are made here. It imports no clock, socket, thread, random source or logger.

Time enters as integer nanoseconds inside each event, effects leave as values. The journal is the only thing that
changes state: ``Node.step`` decides records, ``fold.apply`` folds them, and replay is the same fold.
"""
