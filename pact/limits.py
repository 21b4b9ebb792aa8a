"""How much anybody may ask for: every limit that keeps one person, program or key from harming others, with its name.

Bytes unless the name says otherwise (``_S``: seconds). ``docs/security.md`` has a row for each, with the test that
shows it. How long a *thing* may be (a name, a rack) stands where that thing is made.
"""

from __future__ import annotations

from typing import Final

# What is read from outside
LEVELS_MAX: Final = 32  # of nesting, in any text
REQUEST_MAX: Final = 64 << 10  # of people who are no administrators, at the socket and over the tree
REQUEST_ADMIN_MAX: Final = 256 << 20  # at the socket
FRAME_MAX: Final = 16 << 20  # of the tree
HEAD_MAX: Final = 4 << 20  # of a frame
RECORD_MAX: Final = 8 << 20  # one record's line on its way up
NODE_SET_MAX: Final = 256 << 10  # characters in a request: at most 1.5 MiB of its head, however written
HTTP_REQUEST_MAX: Final = 8 << 10
REPLAY_REQUEST_MAX: Final = 1024

# Places
SOCKET_CLIENTS_MAX: Final = 128
SOCKET_CLIENTS_EACH_MAX: Final = 32  # of one account
SOCKET_VIEWERS_MAX: Final = 64  # who may only look must not keep out who has to act
SOCKET_SILENT_S: Final = 10.0  # who has said and heard nothing for so long gives his place to somebody who wants one
TREE_CLIENTS_MAX: Final = 4096  # people's connections below one aggregator
TREE_CLIENTS_EACH_MAX: Final = 16  # of one key
HTTP_CONNECTIONS_MAX: Final = 64

# Requests under way
TREE_REQUESTS_MAX: Final = 16  # of one connection
QUESTIONS_MAX: Final = 1000  # to nodes, at the root
QUESTIONS_EACH_MAX: Final = 125  # of one person
CONSUMERS_ASKED_MAX: Final = 32  # questions who uses something: their thread may hang, whatever the others do

# The loop's time, and what is done beside it
LOOP_SHARE: Final = 0.2  # of each second, for each person who is no administrator
VIEWERS_LOOKS_PER_S: Final = 8  # for which what is in constant motion is looked at before its time; of all viewers
ANSWER_PIECE: Final = 256 << 10  # of a long answer, which is written elsewhere
ANSWER_PIECE_S: Final = 0.05
TEXT_DIFF_S: Final = 0.25  # for comparing two texts; beyond it they are told as taken away and added
READING_EACH_S: Final = 30.0  # reading files of one user, in one period
READING_ALL_S: Final = 60.0  # of all users
READING_PERIOD_S: Final = 300.0
XATTRS_MAX: Final = 64 << 10  # a file's extended attributes, with their names

# What is recorded
REFUSALS_AT_ONCE: Final = 100  # of all people on a node who are no administrators; then one a second, with a count
DENIED_EACH_MAX: Final = 60  # refusals of one account at once; then it is served once a second
ROOT_DENIED_PER_MINUTE: Final = 60  # refusals of one person in the root's log
SHARE_EVENTS: Final = 20_000  # of one node at once in the root's log; then ``[journal] share`` a second
SHARE_BYTES: Final = 64 << 20

# Subscribers
TOPICS_MAX: Final = 4096  # of one connection
TOPICS_BYTES_MAX: Final = 256 << 10
TOPICS_KEY_BYTES_MAX: Final = 1 << 20  # of all connections with one key
