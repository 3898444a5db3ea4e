/* Many keep-alive connections held by one process, for tests/bench/million.
 *
 *     crowd PORT SOURCE COUNT
 *
 * From the loopback address SOURCE and those behind it to 127.0.0.1:PORT. Words on standard input, a line each, are answered
 * by a line "DONE FAILED WHY" when all of it is done: "open" opens COUNT connections, "ask" asks once on each. At the end of
 * the input it closes them, with a reset, so that no million of sockets is left in TIME_WAIT. It dies with its parent.
 *
 * It waits for no event: a connection to loopback is made inside connect(), and answers are read in the order in which they
 * were asked for, a window behind. So an idle connection costs this side its socket and nothing else.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    WINDOW = 64,          /* requests on their way at the same time */
    PATIENCE = 60,        /* seconds that a connection or an answer may take */
    MOST_RESPONSE = 4096, /* bytes of a response, head and body */
    PER_SOURCE = 2000,    /* connections from one address: the fuller its ports, the longer the kernel looks for a free one */
};

static const char REQUEST[] = "GET / HTTP/1.1\r\nHost: crowd\r\n\r\n";

static struct sockaddr_in target, source;
static int *sockets; /* -1: failed */
static int count;
static int done, failed;
static const char *why; /* the first failure */

static void fail(int at, const char *reason) {
    if (failed++ == 0)
        why = reason;
    if (sockets[at] >= 0)
        close(sockets[at]);
    sockets[at] = -1;
}

static int set(int fd, int level, int option, const void *value, socklen_t len) {
    return setsockopt(fd, level, option, value, len);
}

static void open_one(int at) {
    const int yes = 1;
    const struct linger reset = {.l_onoff = 1, .l_linger = 0};
    const struct timeval patience = {.tv_sec = PATIENCE};
    struct sockaddr_in from = source;
    from.sin_addr.s_addr = htonl(ntohl(source.sin_addr.s_addr) + (uint32_t)(at / PER_SOURCE));
    int fd = sockets[at] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || set(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) < 0 ||
        set(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0 ||
        set(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0 ||
        /* The port is chosen by connect(), which knows the whole quadruple. */
        set(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes) < 0 ||
        bind(fd, (struct sockaddr *)&from, sizeof from) < 0 ||
        connect(fd, (struct sockaddr *)&target, sizeof target) < 0)
        return fail(at, strerror(errno));
    done++;
}

/* Whether `text` holds a whole response; its status and whether bytes follow it are checked. */
static int is_whole(char *text, size_t len, const char **wrong) {
    text[len] = 0;
    char *body = strstr(text, "\r\n\r\n");
    if (!body)
        return 0;
    char *length = strcasestr(text, "\r\ncontent-length:");
    if (strncmp(text, "HTTP/1.1 200 ", 13) != 0 || !length || length > body) {
        *wrong = "not a 200 with a length";
        return 1;
    }
    size_t whole = (size_t)(body + 4 - text) + strtoul(length + 17, NULL, 10);
    if (len > whole)
        *wrong = "more than was asked for";
    return len >= whole;
}

static void receive_one(int at) {
    char text[MOST_RESPONSE + 1];
    const char *wrong = NULL;
    size_t len = 0;
    if (sockets[at] < 0)
        return;
    do {
        ssize_t got = len < MOST_RESPONSE ? recv(sockets[at], text + len, MOST_RESPONSE - len, 0) : 0;
        if (got <= 0)
            return fail(at, got == 0 ? "closed without a whole answer" : strerror(errno));
        len += (size_t)got;
    } while (!is_whole(text, len, &wrong));
    if (wrong)
        return fail(at, wrong);
    done++;
}

static void ask_one(int at) {
    if (sockets[at] < 0)
        failed++;
    else if (send(sockets[at], REQUEST, sizeof REQUEST - 1, MSG_NOSIGNAL) != sizeof REQUEST - 1)
        fail(at, strerror(errno));
}

static void ask_all(void) {
    for (int at = 0; at < count + WINDOW; at++) {
        if (at >= WINDOW)
            receive_one(at - WINDOW);
        if (at < count)
            ask_one(at);
    }
}

static void open_all(void) {
    for (int at = 0; at < count; at++)
        open_one(at);
}

int main(int argc, char **argv) {
    char word[16];
    if (argc != 4 || inet_pton(AF_INET, argv[2], &source.sin_addr) != 1) {
        fprintf(stderr, "usage: crowd PORT SOURCE COUNT\n");
        return 2;
    }
    /* If the parent is gone already, the input has ended. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    source.sin_family = target.sin_family = AF_INET;
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    target.sin_port = htons((uint16_t)atoi(argv[1]));
    count = atoi(argv[3]);
    sockets = malloc((size_t)count * sizeof *sockets);
    if (count < 1 || !sockets)
        return 2;
    memset(sockets, -1, (size_t)count * sizeof *sockets);
    while (fgets(word, sizeof word, stdin)) {
        done = failed = 0;
        why = "-";
        if (strcmp(word, "open\n") == 0)
            open_all();
        else if (strcmp(word, "ask\n") == 0)
            ask_all();
        else
            return 2;
        printf("%d %d %s\n", done, failed, why);
        fflush(stdout);
    }
    return 0;
}
