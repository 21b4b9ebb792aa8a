"""How much anybody may request: every limit that keeps one person, program or key from harming others, with its name.

Bytes unless the name says otherwise (``_S``: seconds). ``docs/security.md`` has a row for each, with the test that
proves it. The lengths of *things* (a name, a rack) are defined where those things are.
"""

from __future__ import annotations

from typing import Final

# Input from outside
LEVELS_MAX: Final = 32  # of nesting, in any text
REQUEST_MAX: Final = 64 << 10  # of people who are not administrators, at the socket and over the tree
REQUEST_ADMIN_MAX: Final = 256 << 20  # at the socket
FRAME_MAX: Final = 16 << 20  # of the tree
HEAD_MAX: Final = 4 << 20  # of a frame
RECORD_MAX: Final = 8 << 20  # one record's line on its way up
NODE_SET_MAX: Final = 256 << 10  # characters in a request: at most 1.5 MiB of its head, in any encoding
UNKNOWN_NAMES_MAX: Final = 10_000  # that a person's node set may name beyond as many as the root knows
HTTP_REQUEST_MAX: Final = 8 << 10
REPLAY_REQUEST_MAX: Final = 1024

# Places
SOCKET_CLIENTS_MAX: Final = 128
SOCKET_CLIENTS_EACH_MAX: Final = 32  # of one account
SOCKET_VIEWERS_MAX: Final = 64  # viewers must leave places to people who have to act
# A client that has sent and received nothing for this long may lose its place to a new client.
SOCKET_SILENT_S: Final = 10.0
TREE_CLIENTS_MAX: Final = 4096  # people's connections below one aggregator
TREE_CLIENTS_EACH_MAX: Final = 16  # of one key
TREE_CLIENTS_ADMIN: Final = 256  # of these places, only for administrators
TREE_CLIENTS_BEYOND_MAX: Final = 2000  # people below one other aggregator who wait for something
TREE_CONNECTIONS_EACH_MAX: Final = 128  # of one key at one aggregator
TREE_UNREAD_MAX: Final = 64 << 20  # sent to all connections of one key at one aggregator, and not read
UNREAD_ALL_MAX: Final = (
    1 << 30
)  # sent by one process to all keys that are no administrator's or aggregator's, and not read
PUBLIC_CONNECTIONS_EACH_MAX: Final = 1000  # of one key at each public port
EVENTS_UNREAD_EACH_MAX: Final = 64 << 20  # of events not read: of one connection, or a while ago of all of one key
EVENTS_UNREAD_ALL_MAX: Final = 512 << 20  # to all keys
REPLAY_UNREAD_EACH_MAX: Final = 4 << 20  # of missed events that one connection has not read; it gets no more
SILENT_CONNECTIONS_MAX: Final = 256  # of one host at one port, of which nothing was heard yet
LOOKERS_MAX: Final = 256  # people who are told of the whole fleet (``pact top``)
LOOKERS_EACH_MAX: Final = 32  # of one person
HTTP_CONNECTIONS_MAX: Final = 64
HTTP_PAGES_MAX: Final = 256  # live pages, each a connection that stays
HTTP_PAGES_EACH_MAX: Final = 224  # of one address
HTTP_UNREAD_MAX: Final = 1 << 20  # of messages that one page has not read, besides the one that it is reading

# Open requests
TREE_REQUESTS_MAX: Final = 16  # of one connection
QUESTIONS_MAX: Final = 1000  # to nodes, at the root
QUESTIONS_EACH_MAX: Final = 125  # of one person
CONSUMERS_ASKED_MAX: Final = 32  # questions about consumers: their threads may hang, without effect on other requests

# The loop's time, and work beside it
LOOP_SHARE: Final = 0.2  # of each second, for each person who is not an administrator
LOOP_SHARE_ALL: Final = 0.5  # of each second of a root's loop, for all of these people together
VIEWERS_LOOKS_PER_S: Final = 8  # how often viewers together may cause an early observation of values in constant motion
ANSWER_PIECE: Final = 256 << 10  # of a long answer, which is written in a thread
ANSWER_PIECE_S: Final = 0.05
TEXT_DIFF_S: Final = 0.25  # for comparing two texts; beyond it they are shown as removed and added
READING_EACH_S: Final = 30.0  # for reading the files of one user, in one period
READING_ALL_S: Final = 60.0  # of all users
READING_PERIOD_S: Final = 300.0
XATTRS_MAX: Final = 64 << 10  # a file's extended attributes, with their names

# Records
REFUSALS_AT_ONCE: Final = 100  # of all people on a node who are not administrators; then one a second, with a count
DENIED_EACH_MAX: Final = 60  # refusals of one account at once; then it is served once a second
ROOT_DENIED_PER_MINUTE: Final = 60  # refusals of one person in the root's log; of all as on a node, with a count
ROOT_DENIED_RESERVED: Final = 64  # people whose first refusal in a minute is recorded whatever others do
BUSY_AT_ONCE: Final = 20  # records that other processes hold what a rollback waits for, of all changes together; then
BUSY_EACH_S: Final = 60.0  # one in this time
TRACKED_AT_ONCE: Final = 100  # records of new things below tracked patterns, of all owners but root together; then
TRACKED_EACH_S: Final = 2.0  # one in this time, with what came of all of them
STRANGERS_AT_ONCE: Final = 100  # lines about keys that nobody knows in the log of an aggregator's process; then
STRANGERS_EVERY_S: Final = 10.0  # one in this time, with a count
MOVING_AT_ONCE: Final = 500  # records of what others than root move on a node, all together; then
MOVING_PER_S: Final = 5  # so many a second: below the root's share, which others need too
MOVING_BYTES: Final = 8 << 10  # what is longer counts as several
MOVING_S: Final = 600.0  # but the last state of each at the latest after this pause
MOVING_EACH: Final = 10  # beside that, of one person who has moved little of late
MOVING_EACH_S: Final = 60.0  # and then one in this time
MOVING_OWNERS_MAX: Final = 64  # of so many people
SHARE_EVENTS: Final = 20_000  # of one node at once in the root's log; then ``[journal] share`` a second
SHARE_BYTES: Final = 64 << 20

# Subscribers
TOPICS_MAX: Final = 4096  # of one connection
TOPICS_BYTES_MAX: Final = 256 << 10
TOPICS_KEY_BYTES_MAX: Final = 1 << 20  # of all connections with one key
