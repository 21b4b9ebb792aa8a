"""A ROUTER or DEALER of pyzmq, many small messages at a time: one Python call where pyzmq needs four for each message.

The sockets stay pyzmq's: it makes, binds, connects and closes them. Its wheels contain their own libzmq, against which
nothing else may be linked: the functions are looked up in the library that pyzmq itself has loaded. ImportError if that
is impossible. The twin, with the same results, is ``reference_sockets.py``.

Nothing here waits. One thread uses a port, as with its socket.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport EAGAIN, EINTR
from libc.string cimport memcpy, strlen

import os
import sys

import zmq
import zmq.backend

cdef extern from "dlfcn.h" nogil:
    void *dlopen(const char *path, int flags)
    void *dlsym(void *handle, const char *name)
    enum: RTLD_NOW

cdef extern from *:
    """
    typedef union { unsigned char bytes[64]; void *aligned; } pact_msg; /* zmq_msg_t since libzmq 4.1 */
    static int (*pact_msg_init)(pact_msg *);
    static int (*pact_msg_init_size)(pact_msg *, size_t);
    static int (*pact_msg_move)(pact_msg *, pact_msg *);
    static int (*pact_msg_copy)(pact_msg *, pact_msg *);
    static int (*pact_msg_close)(pact_msg *);
    static int (*pact_msg_recv)(pact_msg *, void *, int);
    static int (*pact_msg_send)(pact_msg *, void *, int);
    static void *(*pact_msg_data)(pact_msg *);
    static size_t (*pact_msg_size)(const pact_msg *);
    static int (*pact_msg_more)(const pact_msg *);
    static int (*pact_msg_get)(const pact_msg *, int);
    static const char *(*pact_msg_gets)(const pact_msg *, const char *);
    static int (*pact_send)(void *, const void *, size_t, int);
    static int (*pact_getsockopt)(void *, int, void *, size_t *);
    static int (*pact_errno)(void);
    #define PACT_FIND(name) (*(void **)&pact_##name = dlsym(found, "zmq_" #name))
    static int pact_find(void *found) {
        return PACT_FIND(msg_init) && PACT_FIND(msg_init_size) && PACT_FIND(msg_move) && PACT_FIND(msg_copy)
            && PACT_FIND(msg_close) && PACT_FIND(msg_recv) && PACT_FIND(msg_send) && PACT_FIND(msg_data)
            && PACT_FIND(msg_size) && PACT_FIND(msg_more) && PACT_FIND(msg_get) && PACT_FIND(msg_gets)
            && PACT_FIND(send) && PACT_FIND(getsockopt) && PACT_FIND(errno);
    }
    """
    ctypedef struct pact_msg:
        pass
    int pact_find(void *) noexcept
    int pact_msg_init(pact_msg *) noexcept nogil
    int pact_msg_init_size(pact_msg *, size_t) noexcept nogil
    int pact_msg_move(pact_msg *, pact_msg *) noexcept nogil
    int pact_msg_copy(pact_msg *, pact_msg *) noexcept nogil
    int pact_msg_close(pact_msg *) noexcept nogil
    int pact_msg_recv(pact_msg *, void *, int) noexcept nogil
    int pact_msg_send(pact_msg *, void *, int) noexcept nogil
    void *pact_msg_data(pact_msg *) noexcept nogil
    size_t pact_msg_size(const pact_msg *) noexcept nogil
    int pact_msg_more(const pact_msg *) noexcept nogil
    int pact_msg_get(const pact_msg *, int) noexcept nogil
    const char *pact_msg_gets(const pact_msg *, const char *) noexcept nogil
    int pact_send(void *, const void *, size_t, int) noexcept nogil
    int pact_getsockopt(void *, int, void *, size_t *) noexcept nogil
    int pact_errno() noexcept nogil

cdef enum:
    DONTWAIT = 1
    SNDMORE = 2
    SRCFD = 2
    EVENTS = 15
    POLLIN = 1
    READ_BYTES = 262144  # the caller checks the clock after handling this much


cdef bint _found() except -1:
    """Whether the functions were found in the libzmq that pyzmq uses."""
    module = sys.modules.get(zmq.backend.Socket.__module__)
    path = getattr(module, "__file__", None)
    if path is None:
        return False
    cdef bytes name = os.fsencode(path)
    cdef void *handle = dlopen(name, RTLD_NOW)  # loaded already: never closed, since pyzmq never is
    return handle != NULL and pact_find(handle)


if not _found():
    raise ImportError("pyzmq's libzmq cannot be reached from C")


cdef class Held:
    """A large message in libzmq's memory: read only, freed with its last ``memoryview``."""
    cdef pact_msg msg
    cdef bint filled

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, pact_msg_data(&self.msg), <Py_ssize_t>pact_msg_size(&self.msg), 1, flags)

    def __dealloc__(self):
        if self.filled:
            pact_msg_close(&self.msg)


cdef extern from "Python.h":
    int PyBuffer_FillInfo(Py_buffer *view, object exporter, void *buf, Py_ssize_t size, int fixed, int flags) except -1


cdef class Port:
    """``socket``: a ROUTER or DEALER. Frames of at least ``shared_from`` bytes are returned without a copy, as
    read-only ``memoryview``; smaller ones are ``bytes``. Each method raises ``zmq.ZMQError`` for any other failure than
    its own result.
    """
    cdef readonly object socket
    cdef void *handle
    cdef size_t shared_from

    def __init__(self, socket, Py_ssize_t shared_from):
        self.socket = socket
        self.handle = <void *><size_t>socket.underlying
        self.shared_from = <size_t>shared_from

    cdef object _fail(self):
        raise zmq.ZMQError(pact_errno())

    cdef int _require_open(self) except -1:
        if self.socket.closed:  # its handle may point to other memory by now
            raise zmq.ZMQError(zmq.ENOTSOCK)
        return 0

    cdef int _give(self, bytes frame, int flags) except -1:
        """1: sent; 0: not sent, ``errno`` says why. After a signal in between it tries again."""
        while pact_send(self.handle, PyBytes_AS_STRING(frame), <size_t>PyBytes_GET_SIZE(frame), DONTWAIT | flags) < 0:
            if pact_errno() != EINTR:
                return 0
        return 1

    cdef int _next(self, pact_msg *msg) except -1:
        """1: a frame is there; 0: there is none now."""
        pact_msg_init(msg)
        while pact_msg_recv(msg, self.handle, DONTWAIT) < 0:
            if pact_errno() == EINTR:  # a signal: it is not known yet whether there is one
                continue
            pact_msg_close(msg)
            if pact_errno() != EAGAIN:
                self._fail()
            return 0
        return 1

    cdef object _taken(self, pact_msg *msg):
        """The frame's bytes; ``None`` if more frames follow: such a message is not one of the tree, and is dropped.
        Closes it."""
        cdef Held held
        cdef bint several = False
        cdef size_t size = pact_msg_size(msg)
        while pact_msg_more(msg):
            several = True
            pact_msg_close(msg)
            if not self._next(msg):
                return None
        if not several and size >= self.shared_from:
            held = Held.__new__(Held)
            pact_msg_init(&held.msg)
            held.filled = True
            pact_msg_move(&held.msg, msg)
            pact_msg_close(msg)
            return memoryview(held)
        out = None if several else PyBytes_FromStringAndSize(<char *>pact_msg_data(msg), <Py_ssize_t>size)
        pact_msg_close(msg)
        return out

    def receive(self, Py_ssize_t most):
        """At most ``most`` messages of a DEALER, no more once ``READ_BYTES`` have been read: their frames, ``None`` for
        a message of several frames; and whether everything was read.
        """
        cdef pact_msg msg
        cdef list out = []
        cdef size_t room = READ_BYTES
        self._require_open()
        while most > 0 and room > 0:
            most -= 1
            if not self._next(&msg):
                return out, True
            room -= min(room, pact_msg_size(&msg))
            out.append(self._taken(&msg))
        return out, False

    def receive_from(self, Py_ssize_t most):
        """The same for a ROUTER: for each message its routing id, its sender's public key ("" if there is none), its
        connection's descriptor (-1 if unknown), and its frame.
        """
        cdef pact_msg msg
        cdef list out = []
        cdef const char *key
        cdef int fd
        cdef size_t room = READ_BYTES
        self._require_open()
        while most > 0 and room > 0:
            most -= 1
            if not self._next(&msg):
                return out, True
            rid = PyBytes_FromStringAndSize(<char *>pact_msg_data(&msg), <Py_ssize_t>pact_msg_size(&msg))
            pact_msg_close(&msg)
            if not self._next(&msg):  # libzmq gives a message completely or not at all
                return out, True
            key = pact_msg_gets(&msg, b"User-Id")
            sender = "" if key == NULL else PyUnicode_DecodeUTF8(key, <Py_ssize_t>strlen(key), "replace")
            fd = pact_msg_get(&msg, SRCFD)
            room -= min(room, pact_msg_size(&msg))
            out.append((rid, sender, fd, self._taken(&msg)))
        return out, False

    def send(self, bytes frame not None):
        """Send one message of a DEALER. False if it is stuck: nothing was sent."""
        self._require_open()
        if self._give(frame, 0):
            return True
        if pact_errno() != EAGAIN:
            self._fail()
        return False

    def send_to(self, rids, bytes frame not None):
        """Send the same frame to each routing id of a ROUTER, one copy for all. Returns the routing ids that it did not
        reach."""
        cdef pact_msg whole, msg
        cdef list lost = []
        cdef bytes rid
        cdef size_t size = <size_t>PyBytes_GET_SIZE(frame)
        cdef bint shared = size >= self.shared_from
        self._require_open()
        if shared:
            if pact_msg_init_size(&whole, size) < 0:
                raise MemoryError()
            memcpy(pact_msg_data(&whole), PyBytes_AS_STRING(frame), size)
        try:
            for rid in rids:
                if rid is None:
                    raise TypeError("None is no routing id")
                if not self._give(rid, SNDMORE):
                    lost.append(rid)
                elif not shared:
                    if not self._give(frame, 0):
                        lost.append(rid)
                else:
                    pact_msg_init(&msg)
                    pact_msg_copy(&msg, &whole)
                    while pact_msg_send(&msg, self.handle, DONTWAIT) < 0:
                        if pact_errno() != EINTR:
                            pact_msg_close(&msg)
                            lost.append(rid)
                            break
        finally:
            if shared:
                pact_msg_close(&whole)
        return lost

    def send_each(self, rids, list frames not None):
        """Send to each routing id of a ROUTER its own frame, in the same order. Returns the routing ids that were not
        reached."""
        cdef list lost = []
        cdef bytes rid, frame
        cdef Py_ssize_t i = 0
        self._require_open()
        if len(rids) != len(frames):
            raise ValueError("as many frames as routing ids")
        for rid in rids:
            frame = frames[i]
            i += 1
            if rid is None or frame is None:
                raise TypeError("None is no routing id, and no frame")
            if not self._give(rid, SNDMORE) or not self._give(frame, 0):
                lost.append(rid)
        return lost

    def readable(self):
        """Whether something can be received now. Unlike the socket's descriptor it misses nothing."""
        cdef int events = 0
        cdef size_t size = sizeof(events)
        self._require_open()
        while pact_getsockopt(self.handle, EVENTS, &events, &size) < 0:
            if pact_errno() != EINTR:
                self._fail()
        return bool(events & POLLIN)
