/* What any server must pay: epoll, read, write, sendfile. No parsing: a request is whatever ends in an empty line, and is
 * answered with the same bytes as each before it. The yardstick that tests/bench/run holds Phalanx against.
 *
 *     bare_loop PORT RESPONSE_FILE [LETTER RESPONSE_FILE BODY_FILE|-]...
 *
 * A read that begins with "GET /LETTER" is one request, and gets that response, the body from its file.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EVENTS = 256, READ_BYTES = 16 * 1024, MOST_RESPONSE = 4096, MOST_BATCH = 64, MOST_FD = 1 << 16 };

struct answer {
    char bytes[MOST_RESPONSE];
    size_t len;
    int body; /* a file, or -1 */
    off_t body_len;
};

static char batch[MOST_BATCH * MOST_RESPONSE]; /* the plain response, over and over */
static struct answer plain, named[256];        /* by letter */
static unsigned char matched[MOST_FD]; /* bytes of the empty line seen at the end of the last read, by descriptor */
static struct {
    const struct answer *answer; /* whose body is on its way, or none */
    off_t at;
} sending[MOST_FD];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void load(struct answer *answer, const char *path, const char *body) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    answer->len = fread(answer->bytes, 1, MOST_RESPONSE, file);
    if (!answer->len) die("an empty response");
    fclose(file);
    answer->body = -1;
    if (!strcmp(body, "-")) return;
    struct stat status;
    answer->body = open(body, O_RDONLY | O_CLOEXEC);
    if (answer->body < 0 || fstat(answer->body, &status)) die(body);
    answer->body_len = status.st_size;
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024)) die("bind");
    return fd;
}

static void watch(int epoll, int fd, int how, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, how, fd, &event)) die("epoll_ctl");
}

static void accept_all(int epoll, int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MOST_FD) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        matched[fd] = 0;
        sending[fd].answer = NULL;
        watch(epoll, fd, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static int requests_in(int fd, const char *bytes, ssize_t len) {
    int count = 0;
    unsigned char seen = matched[fd];
    for (ssize_t i = 0; i < len; i++) {
        seen = bytes[i] == "\r\n\r\n"[seen] ? seen + 1 : bytes[i] == '\r';
        if (seen == 4) count++, seen = 0;
    }
    matched[fd] = seen;
    return count;
}

/* What is left of a body, as far as the peer takes it. */
static void send_body(int epoll, int fd, int waited) {
    const struct answer *answer = sending[fd].answer;
    while (sending[fd].at < answer->body_len) {
        ssize_t sent = sendfile(fd, answer->body, &sending[fd].at, answer->body_len - sending[fd].at);
        if (sent < 0 && errno == EAGAIN) {
            if (!waited) watch(epoll, fd, EPOLL_CTL_MOD, EPOLLOUT);
            return;
        }
        if (sent <= 0) {
            close(fd);
            return;
        }
    }
    sending[fd].answer = NULL;
    if (waited) watch(epoll, fd, EPOLL_CTL_MOD, EPOLLIN);
}

static void serve(int epoll, int fd) {
    char bytes[READ_BYTES];
    if (sending[fd].answer) {
        send_body(epoll, fd, 1);
        return;
    }
    ssize_t len = read(fd, bytes, sizeof bytes);
    if (len < 0 && errno == EAGAIN) return;
    if (len <= 0) {
        close(fd);
        return;
    }
    const struct answer *answer = len > 5 && !memcmp(bytes, "GET /", 5) ? &named[(unsigned char)bytes[5]] : &plain;
    int count = requests_in(fd, bytes, len);
    if (answer->len && count) {
        if (write(fd, answer->bytes, answer->len) != (ssize_t)answer->len) {
            close(fd);
        } else if (answer->body >= 0) {
            sending[fd].answer = answer;
            sending[fd].at = 0;
            send_body(epoll, fd, 0);
        }
        return;
    }
    for (int left = count; left > 0;) {
        int now = left < MOST_BATCH ? left : MOST_BATCH;
        /* A client that does not read is not waited for: the benchmark has none. */
        if (write(fd, batch, now * plain.len) != (ssize_t)(now * plain.len)) {
            close(fd);
            return;
        }
        left -= now;
    }
}

int main(int argc, char **argv) {
    if (argc < 3 || argc % 3) return fprintf(stderr, "usage: %s PORT RESPONSE_FILE [LETTER RESPONSE_FILE BODY_FILE|-]...\n", argv[0]), 2;
    signal(SIGPIPE, SIG_IGN); /* wrk leaves in the middle of a file */
    load(&plain, argv[2], "-");
    for (int i = 0; i < MOST_BATCH; i++) memcpy(batch + i * plain.len, plain.bytes, plain.len);
    for (int at = 3; at < argc; at += 3) load(&named[(unsigned char)argv[at][0]], argv[at + 1], argv[at + 2]);
    int listener = listen_on(atoi(argv[1])), epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[EVENTS];
    watch(epoll, listener, EPOLL_CTL_ADD, EPOLLIN);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == listener) accept_all(epoll, listener);
            else serve(epoll, events[i].data.fd);
        }
    }
}
