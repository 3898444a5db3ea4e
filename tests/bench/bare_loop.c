/* What any server must pay: epoll, read, write. No parsing: a request is whatever ends in an empty line, and each is
 * answered with the same bytes. The yardstick that tests/bench/run holds Phalanx against.
 *
 *     bare_loop PORT RESPONSE_FILE
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, READ_BYTES = 16 * 1024, MOST_RESPONSE = 4096, MOST_BATCH = 64, MOST_FD = 1 << 16 };

static char batch[MOST_BATCH * MOST_RESPONSE]; /* the response, over and over */
static size_t response_len;
static unsigned char matched[MOST_FD]; /* bytes of the empty line seen at the end of the last read, by descriptor */

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void load_response(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    response_len = fread(batch, 1, MOST_RESPONSE, file);
    if (!response_len) die("an empty response");
    fclose(file);
    for (int i = 1; i < MOST_BATCH; i++) memcpy(batch + i * response_len, batch, response_len);
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024)) die("bind");
    return fd;
}

static void watch(int epoll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
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
        watch(epoll, fd);
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

static void serve(int fd) {
    char bytes[READ_BYTES];
    ssize_t len = read(fd, bytes, sizeof bytes);
    if (len < 0 && errno == EAGAIN) return;
    if (len <= 0) {
        close(fd);
        return;
    }
    for (int left = requests_in(fd, bytes, len); left > 0;) {
        int now = left < MOST_BATCH ? left : MOST_BATCH;
        /* A client that does not read is not waited for: the benchmark has none. */
        if (write(fd, batch, now * response_len) != (ssize_t)(now * response_len)) {
            close(fd);
            return;
        }
        left -= now;
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: %s PORT RESPONSE_FILE\n", argv[0]), 2;
    load_response(argv[2]);
    int listener = listen_on(atoi(argv[1])), epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[EVENTS];
    watch(epoll, listener);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == listener) accept_all(epoll, listener);
            else serve(events[i].data.fd);
        }
    }
}
