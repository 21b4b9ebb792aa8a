/* The baseline of bench_cluster: one flat loop over ZeroMQ at the speed of C. A ROUTER sends one frame to each of its
 * children and collects an answer from each; it decodes nothing, knows nobody and keeps no sessions. The sockets are as
 * ours: CURVE (or not), the same limits, a DEALER with a key of its own for each child.
 *
 *   flat router N IO_THREADS CURVE SIZE        says "PORT KEY", then "ready"; a line on stdin is a number of rounds, whose
 *                                              milliseconds it prints; the end of stdin ends it
 *   flat dealers N PORT KEY SIZE RATE          N children; KEY is - for none; RATE: connections in a second; the end of
 *                                              stdin ends it
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#define ID_MAX 16

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void check(int bad, const char *what)
{
    if (!bad) return;
    fprintf(stderr, "%s: %s\n", what, zmq_strerror(errno));
    exit(1);
}

static void limits(void *socket)
{
    int dead = 15000, keep = 1, hwm = 4096, linger = 0;
    zmq_setsockopt(socket, ZMQ_TCP_MAXRT, &dead, sizeof dead);
    zmq_setsockopt(socket, ZMQ_TCP_KEEPALIVE, &keep, sizeof keep);
    zmq_setsockopt(socket, ZMQ_SNDHWM, &hwm, sizeof hwm);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &hwm, sizeof hwm);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
}

static void *context(int io_threads)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    void *ctx = zmq_ctx_new();
    zmq_ctx_set(ctx, ZMQ_IO_THREADS, io_threads);
    zmq_ctx_set(ctx, ZMQ_MAX_SOCKETS, 16384);
    return ctx;
}

static int router(int n, int io_threads, int curve, int size)
{
    void *socket = zmq_socket(context(io_threads), ZMQ_ROUTER);
    char public[41] = "-", secret[41], endpoint[256], line[64], frame[65536];
    size_t length = sizeof endpoint;
    int backlog = 4096, one = 1;
    limits(socket);
    zmq_setsockopt(socket, ZMQ_BACKLOG, &backlog, sizeof backlog);
    zmq_setsockopt(socket, ZMQ_ROUTER_MANDATORY, &one, sizeof one);
    if (curve) {
        check(zmq_curve_keypair(public, secret), "keys");
        check(zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &one, sizeof one), "CURVE");
        check(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret, 41), "CURVE");
    }
    check(zmq_bind(socket, "tcp://127.0.0.1:*"), "bind");
    zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &length);
    printf("%s %s\n", strrchr(endpoint, ':') + 1, public);
    fflush(stdout);
    char(*ids)[ID_MAX] = calloc(n, ID_MAX);
    int *id_sizes = calloc(n, sizeof(int));
    for (int i = 0; i < n; i++) {
        id_sizes[i] = zmq_recv(socket, ids[i], ID_MAX, 0);
        zmq_recv(socket, frame, sizeof frame, 0);
    }
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        for (int round = atoi(line); round > 0; round--) {
            char id[ID_MAX];
            double began = now_ms();
            memset(frame, 'x', size);
            for (int i = 0; i < n; i++) {
                check(zmq_send(socket, ids[i], id_sizes[i], ZMQ_SNDMORE) < 0, "send");
                check(zmq_send(socket, frame, size, 0) < 0, "send");
            }
            for (int got = 0; got < n; got++) {
                check(zmq_recv(socket, id, sizeof id, 0) < 0, "receive");
                check(zmq_recv(socket, frame, sizeof frame, 0) < 0, "receive");
            }
            printf("%.3f\n", now_ms() - began);
            fflush(stdout);
            usleep(100000);
        }
    }
    return 0;
}

static int dealers(int n, const char *port, const char *key, int size, int rate)
{
    void *ctx = context(1), **sockets = calloc(n, sizeof(void *));
    int poll = epoll_create1(0), begun = 0;
    char endpoint[64], frame[65536], answer[65536];
    double began = now_ms();
    memset(answer, 'y', sizeof answer);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%s", port);
    struct epoll_event in = {.events = EPOLLIN, .data.u32 = (unsigned)-1}, ready[512];
    epoll_ctl(poll, EPOLL_CTL_ADD, 0, &in);
    for (;;) {
        while (begun < n && begun < (now_ms() - began) * rate / 1000) {
            void *socket = sockets[begun] = zmq_socket(ctx, ZMQ_DEALER);
            check(!socket, "socket");
            limits(socket);
            if (key[0] != '-') {
                char public[41], secret[41];
                zmq_curve_keypair(public, secret);
                zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, public, 41);
                zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret, 41);
                check(zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, key, 41), "CURVE");
            }
            check(zmq_connect(socket, endpoint), "connect");
            check(zmq_send(socket, "hello", 5, 0) < 0, "send");
            int fd;
            size_t length = sizeof fd;
            zmq_getsockopt(socket, ZMQ_FD, &fd, &length);
            zmq_recv(socket, frame, sizeof frame, ZMQ_DONTWAIT); /* who never asked is not woken */
            in.data.u32 = begun++;
            epoll_ctl(poll, EPOLL_CTL_ADD, fd, &in);
        }
        int found = epoll_wait(poll, ready, 512, begun < n ? 2 : -1);
        for (int i = 0; i < found; i++) {
            if (ready[i].data.u32 == (unsigned)-1) return 0;
            void *socket = sockets[ready[i].data.u32];
            while (zmq_recv(socket, frame, sizeof frame, ZMQ_DONTWAIT) >= 0) zmq_send(socket, answer, size, 0);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc == 6 && !strcmp(argv[1], "router")) return router(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
    if (argc == 7 && !strcmp(argv[1], "dealers")) return dealers(atoi(argv[2]), argv[3], argv[4], atoi(argv[5]), atoi(argv[6]));
    return 2;
}
