"""A person's session on this machine: a terminal or pipes, a shell or one command, and the frames that go in and out.

A session is a process of its own, which outlives the agent. This room knows no journal and no request: the agent
decides who may open one, and writes the records.
"""
