"""Follow a cluster's public events and miss none: pyzmq and the standard library.

python subscriber.py EVENTS_URL REPLAY_URL SERVER_KEY SECRET_KEY [TYPE [FROM]]
prints each event once and in order, and "LOST a..b" for what is no longer in the root's log.
"""
import json, sys, time, zmq

events_url, replay_url, server_key, secret_key = sys.argv[1:5]
wanted = sys.argv[5] if len(sys.argv) > 5 else "*"
last = int(sys.argv[6]) - 1 if len(sys.argv) > 6 else None  # None: begin with what comes now
context, port, log = zmq.Context(), None, None

def connect(kind, url, wait_ms=-1):
    socket = context.socket(kind)
    socket.linger, socket.heartbeat_ivl, socket.rcvhwm, socket.rcvtimeo = 0, 2000, 100_000, wait_ms
    socket.curve_serverkey, socket.curve_secretkey = server_key.encode(), secret_key.encode()
    socket.curve_publickey = zmq.curve_public(secret_key.encode())
    socket.connect(url)
    return socket

def show(header, body):
    if header["gseq"] > last:
        print(header["gseq"], header["type"], header["node"], body.decode(), flush=True)
    return max(last, header["gseq"])

live = connect(zmq.SUB, events_url)
live.subscribe("pact.v1." if wanted == "*" else f"pact.v1.{wanted}.")
live.subscribe("pact.v1.heads.")
while True:
    _, header, body = live.recv_multipart()  # it reconnects by itself
    header, newest = json.loads(header), json.loads(body)
    before = header["gseq"] - 1 if wanted == "*" else header["prev"]  # the event that must have come before
    if header["type"] == "heads":
        before = newest["gseq"] if wanted == "*" else newest["types"].get(wanted, -1)
        if log not in (None, header["incarnation"]):
            print("NEW LOG", flush=True)  # its numbers begin again
            last = -1
        log = header["incarnation"]
    last = before if last is None else last
    while last < before:  # a hole: ask for it, until the root that may be restarting answers
        port = port or connect(zmq.DEALER, replay_url, 5000)
        port.send_multipart([b"GET", wanted.encode(), str(last + 1).encode()])
        try:
            while len(frames := port.recv_multipart()) == 3:
                last = show(json.loads(frames[1]), frames[2])
        except zmq.Again:
            port = port.close()
            continue
        if frames[0] == b"ERROR":
            time.sleep(1)  # not now
        elif frames[0] == b"TRUNCATED":
            print(f"LOST {last + 1}..{int(frames[1]) - 1}", flush=True)
            last = int(frames[1]) - 1
        else:  # UPTO
            last = max(last, int(frames[1]))
    if header["type"] != "heads":
        last = show(header, body)
