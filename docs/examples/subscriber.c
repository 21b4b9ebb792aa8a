/* Follow a cluster's public events and miss none, with libzmq alone: cc -o subscriber subscriber.c -lzmq
 * subscriber EVENTS_URL REPLAY_URL SERVER_KEY SECRET_KEY "*"|TYPE [FROM]
 * prints each event once and in order, and "LOST a..b" for what is no longer in the root's log. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>
#define SET(option, value) zmq_setsockopt(s, option, &(int){value}, sizeof(int))
typedef char Message[3][4 << 20]; /* topic, header, body; or a word and a number */
static Message live, old;
static long long last = -2; /* -2: begin with what comes now */
static void *join(void *context, int kind, const char *url, char **arg) {
    void *s = zmq_socket(context, kind);
    char public[41];
    if (zmq_curve_public(public, arg[4])) exit(2);
    zmq_setsockopt(s, ZMQ_CURVE_SERVERKEY, arg[3], 41), zmq_setsockopt(s, ZMQ_CURVE_PUBLICKEY, public, 41);
    zmq_setsockopt(s, ZMQ_CURVE_SECRETKEY, arg[4], 41);
    SET(ZMQ_HEARTBEAT_IVL, 2000), SET(ZMQ_RCVHWM, 100000), SET(ZMQ_LINGER, 0), SET(ZMQ_RCVTIMEO, 5000);
    return zmq_connect(s, url) ? exit(2), NULL : s;
}
static int receive(void *s, Message m) { /* how many frames; 0: none in time */
    for (int n = 0, more = 1, max = sizeof *m - 1;; n++) {
        int got = zmq_recv(s, m[n % 3], max, 0);
        if (got < 0) return 0;
        m[n % 3][got < max ? got : max] = 0;
        if (zmq_getsockopt(s, ZMQ_RCVMORE, &more, &(size_t){sizeof more}) || !more) return n + 1;
    }
}
static long long number(char *json, const char *name) { /* inside a string, a quote has a backslash before it */
    return (json = strstr(json, name)) ? atoll(json + strlen(name)) : -1;
}
static void show(Message m) {
    long long gseq = number(m[1], "\"gseq\":");
    if (gseq > last) printf("%lld %s %s\n", last = gseq, m[1], m[2]), fflush(stdout);
}
int main(int argc, char **arg) {
    if (argc < 6) return fputs("EVENTS_URL REPLAY_URL SERVER_KEY SECRET_KEY TYPE|* [FROM]\n", stderr), 2;
    char topic[99] = "pact.v1.", newest[99] = "\"gseq\":", from[24];
    int n, heads, all = !strcmp(arg[5], "*");
    void *context = zmq_ctx_new(), *sub = join(context, ZMQ_SUB, arg[1], arg), *port = NULL;
    if (!all) snprintf(topic, 99, "pact.v1.%s.", arg[5]), snprintf(newest, 99, "\"%s\":", arg[5]);
    zmq_setsockopt(sub, ZMQ_SUBSCRIBE, topic, strlen(topic)), zmq_setsockopt(sub, ZMQ_SUBSCRIBE, "pact.v1.heads.", 14);
    for (last = argc > 6 ? atoll(arg[6]) - 1 : last;;) {
        if (receive(sub, live) != 3) continue; /* nobody leads; it reconnects by itself */
        heads = !strncmp(live[0], "pact.v1.heads.", 14);
        long long before = heads ? number(live[2], newest) : number(live[1], all ? newest : "\"prev\":") - all;
        for (last = last == -2 ? before : last; last < before;) { /* a hole: ask until the root answers */
            if (!port) port = join(context, ZMQ_DEALER, arg[2], arg);
            snprintf(from, sizeof from, "%lld", last + 1);
            zmq_send(port, "GET", 3, ZMQ_SNDMORE), zmq_send(port, arg[5], strlen(arg[5]), ZMQ_SNDMORE);
            for (zmq_send(port, from, strlen(from), 0); (n = receive(port, old)) == 3;) show(old);
            if (!n) zmq_close(port), port = NULL;
            else if (*old[0] == 'E') zmq_poll(NULL, 0, 1000); /* ERROR: not now */
            else if (*old[0] == 'T') printf("LOST %lld..%lld\n", last + 1, atoll(old[1]) - 1), last = atoll(old[1]) - 1;
            else if (atoll(old[1]) > last) last = atoll(old[1]); /* UPTO */
        }
        if (!heads) show(live);
    }
}
