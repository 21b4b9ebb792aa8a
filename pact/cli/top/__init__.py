"""``pact top``: what is known (``node``, ``fleet``), how it is laid out (``text``, ``layout``), what keys do (``desk``,
``asking``), and the terminal (``draw``, ``plain``). Only ``feed``, ``draw`` and ``plain`` touch the world.
"""
