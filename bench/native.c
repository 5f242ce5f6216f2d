/* Both ends of the bench: a model server that costs next to nothing, and clients that verify.
 *
 *   native backend                                    serve on a free port, printed as {"port": N}
 *   native load HOST PORT CONNS SECONDS CHUNKS INTERVAL_US BURST
 *                                                     ask in a closed loop; CHUNKS 0: no stream,
 *                                                     BURST: chunks that share one send()
 *   native hold HOST PORT CONNS PATH MODEL            ask once on each connection, then hold all
 *
 * Each has one thread and one epoll. `load` and `hold` print a JSON object per report.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    CHUNK_BYTES = 200,  /* one event of a stream, as a chat completion chunk */
    JSON_BYTES = 300,   /* an answer without a stream */
    BURST_MAX = 16,     /* most chunks in one send() */
    HEAD_MAX = 8192,    /* longest head that either end takes */
    EVENTS = 512,
    SHOWN_ERRORS = 5,
};

static char chunk[CHUNK_BYTES + 1], json[JSON_BYTES + 1];
static char frame[CHUNK_BYTES + 16];  /* a chunk in HTTP's framing */
static int frame_bytes;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

/* Copy `text` with its first '@' replaced by x, as many as make it `size` bytes long. */
static void pad(char *out, int size, const char *text) {
    const char *at = strchr(text, '@');
    int fill = size - ((int)strlen(text) - 1), before = (int)(at - text);
    memcpy(out, text, before);
    memset(out + before, 'x', fill);
    strcpy(out + before + fill, at + 1);
}

static void set_up_process(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGTERM);  /* end with the bench, however it ends */
    setvbuf(stdout, NULL, _IOLBF, 0);
    pad(chunk, CHUNK_BYTES, "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"delta\":"
                            "{\"content\":\"@\"}}]}\n\n");
    frame_bytes = sprintf(frame, "%x\r\n%s\r\n", CHUNK_BYTES, chunk);
    pad(json, JSON_BYTES, "{\"object\":\"chat.completion\",\"choices\":[{\"message\":"
                          "{\"role\":\"assistant\",\"content\":\"@\"}}]}");
}

static void prepare(int fd) {
    int one = 1;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void watch(int epoll, int op, int fd, void *conn, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = conn};
    if (epoll_ctl(epoll, op, fd, &event) < 0) die("epoll_ctl");
}

/* Like epoll_wait with a deadline in microseconds: milliseconds are too coarse for paced streams. */
static int wait_until(int epoll, struct epoll_event *events, int64_t at_us) {
    int64_t left = at_us == INT64_MAX ? 1000000 : at_us - now_us();
    if (left < 0) left = 0;
    struct timespec t = {left / 1000000, left % 1000000 * 1000};
    int count = epoll_pwait2(epoll, events, EVENTS, &t, NULL);
    if (count < 0 && errno != EINTR) die("epoll_pwait2");
    return count < 0 ? 0 : count;
}

/* ---- Backend ---- */

struct served {
    int fd, in_bytes, out_at, out_bytes;
    int64_t skip_bytes, due_us, interval_us, chunks_left, burst;
    bool streams, idles, is_queued, waits_for_room;
    struct served *next;
    char in[HEAD_MAX], out[4096];
};

/* Paced streams in the order of their next chunk: a list, since all have the same interval. */
static struct served *first_due, *last_due;

static void enqueue(struct served *s) {
    s->next = NULL;
    s->is_queued = true;
    if (first_due) last_due->next = s; else first_due = s;
    last_due = s;
}

static void unqueue(struct served *s) {
    struct served **link = &first_due, *before = NULL;
    while (*link && *link != s) before = *link, link = &(*link)->next;
    if (*link) *link = s->next;
    if (last_due == s) last_due = before;
}

static void drop_served(struct served *s) {
    if (s->is_queued) unqueue(s);
    close(s->fd);
    free(s);
}

/* Send `out`; return false if the client is gone. out_bytes is 0 once everything was sent. */
static bool flush(struct served *s) {
    ssize_t n = send(s->fd, s->out + s->out_at, s->out_bytes - s->out_at, 0);
    if (n < 0) return errno == EAGAIN;
    s->out_at += n;
    if (s->out_at == s->out_bytes) s->out_at = s->out_bytes = 0;
    return true;
}

static void put(struct served *s, const char *format, ...) {
    va_list values;
    va_start(values, format);
    s->out_bytes += vsnprintf(s->out + s->out_bytes, sizeof s->out - s->out_bytes, format, values);
    va_end(values);
}

/* Send chunks until none is due or the socket is full. */
static bool stream(int epoll, struct served *s) {
    for (;;) {
        if (s->out_bytes && !flush(s)) return false;
        if (s->waits_for_room != (s->out_bytes > 0)) {
            s->waits_for_room = s->out_bytes > 0;
            watch(epoll, EPOLL_CTL_MOD, s->fd, s, EPOLLIN | (s->waits_for_room ? EPOLLOUT : 0));
        }
        if (s->out_bytes || !s->streams) return true;
        if (s->interval_us && now_us() < s->due_us) {
            enqueue(s);
            return true;
        }
        for (int i = 0; i < s->burst && s->chunks_left; i++) {
            memcpy(s->out + s->out_bytes, frame, frame_bytes);
            s->out_bytes += frame_bytes;
            s->chunks_left--;
        }
        s->due_us += s->interval_us;
        s->streams = s->chunks_left > 0;
        if (!s->streams && !s->idles) put(s, "0\r\n\r\n");
    }
}

static void answer(struct served *s, char *head) {
    char *path = strstr(head, "/stream/");
    char *line_end = strchr(head, '\r');
    s->idles = memmem(head, line_end - head, "/idle", 5) != NULL;
    s->streams = s->idles || (path && path < line_end);
    if (!s->streams) {
        put(s, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
            JSON_BYTES, json);
        return;
    }
    long long chunks = 1, interval_us = 0, burst = 1;
    if (!s->idles) sscanf(path, "/stream/%lld/%lld/%lld", &chunks, &interval_us, &burst);
    s->chunks_left = chunks;
    s->interval_us = interval_us;
    s->burst = burst < BURST_MAX ? burst : BURST_MAX;
    s->due_us = now_us();
    put(s, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
}

/* Read, and answer a request once it is complete; return false if the client is gone. */
static bool read_requests(int epoll, struct served *s) {
    ssize_t n = recv(s->fd, s->in + s->in_bytes, sizeof s->in - 1 - s->in_bytes, 0);
    if (n <= 0) return n < 0 && errno == EAGAIN;
    s->in_bytes += n;
    s->in[s->in_bytes] = 0;
    char *end = strstr(s->in, "\r\n\r\n");
    if (!end) return s->in_bytes < HEAD_MAX - 1;
    char *length = strcasestr(s->in, "\r\ncontent-length:");
    long body = length && length < end ? atol(length + 17) : 0;
    if (s->in_bytes < end + 4 - s->in + body) return s->in_bytes < HEAD_MAX - 1;
    s->in_bytes = 0;  /* nobody pipelines here */
    answer(s, s->in);
    return stream(epoll, s);
}

static void serve(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t here_bytes = sizeof here;
    if (bind(listener, (void *)&here, sizeof here) < 0 || listen(listener, 4096) < 0) die("listen");
    getsockname(listener, (void *)&here, &here_bytes);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    watch(epoll, EPOLL_CTL_ADD, listener, NULL, EPOLLIN);
    printf("{\"port\": %d}\n", ntohs(here.sin_port));
    struct epoll_event events[EVENTS];
    for (;;) {
        int count = wait_until(epoll, events, first_due ? first_due->due_us : INT64_MAX);
        for (int i = 0; i < count; i++) {
            struct served *s = events[i].data.ptr;
            if (!s) {
                int fd;
                while ((fd = accept(listener, NULL, NULL)) >= 0) {
                    struct served *fresh = calloc(1, sizeof *fresh);
                    fresh->fd = fd;
                    prepare(fd);
                    watch(epoll, EPOLL_CTL_ADD, fd, fresh, EPOLLIN);
                }
            } else if (!(events[i].events & EPOLLIN ? read_requests(epoll, s) : stream(epoll, s))) {
                drop_served(s);
            }
        }
        while (first_due && first_due->due_us <= now_us()) {
            struct served *s = first_due;
            first_due = s->next;
            s->is_queued = false;
            if (!stream(epoll, s)) drop_served(s);
        }
    }
}

/* ---- Clients ---- */

struct series {
    uint32_t *us;
    size_t count, room;
};

static void note(struct series *s, int64_t us) {
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 4096;
        if (!(s->us = realloc(s->us, s->room * sizeof *s->us))) die("realloc");
    }
    s->us[s->count++] = us;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void print_series(const char *name, struct series *s) {
    if (s->count) qsort(s->us, s->count, sizeof *s->us, by_size);
    for (int percent = 50; percent <= 99; percent += 49) {
        size_t at = s->count * percent / 100;
        printf(", \"%s_p%d_us\": ", name, percent);
        if (s->count) printf("%u", s->us[at]); else printf("null");
    }
}

enum state { HEAD, LENGTH, SIZE_LINE, DATA, DATA_END, LAST_LINE, DONE, BROKEN };

struct client {
    int fd, in_bytes;
    enum state state;
    bool is_reused, closes;
    int64_t sent_us, last_us, left, payload_bytes;
    char in[HEAD_MAX];
};

static struct sockaddr_in server;
static char request[2048];
static int request_bytes, stream_chunks;
static bool is_paced;
static int64_t requests, errors, reconnects, chunk_bytes;
static struct series latency, first_chunk, gap;

static void complain(struct client *c, const char *what) {
    if (errors++ < SHOWN_ERRORS)
        fprintf(stderr, "wrong answer: %s after %lld bytes of body: %.300s\n", what,
                (long long)c->payload_bytes, c->in);
}

static void ask(int epoll, struct client *c) {
    if (c->fd < 0) {
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (c->fd < 0) die("socket");
        if (connect(c->fd, (void *)&server, sizeof server) < 0) die("connect");
        prepare(c->fd);
        watch(epoll, EPOLL_CTL_ADD, c->fd, c, EPOLLIN);
        c->is_reused = false;
    }
    c->state = HEAD;
    c->in_bytes = c->payload_bytes = c->last_us = 0;
    c->in[0] = 0;
    c->sent_us = now_us();
    /* A failure shows when the answer is read. */
    if (send(c->fd, request, request_bytes, 0) < 0) c->is_reused = true;
}

static void hang_up(struct client *c) {
    close(c->fd);
    c->fd = -1;
}

/* Return true if these are the expected bytes at this place of the response. */
static bool is_right(struct client *c, const char *data, int64_t n) {
    const char *expected = stream_chunks ? chunk : json;
    int64_t period = stream_chunks ? CHUNK_BYTES : JSON_BYTES;
    for (int64_t at = c->payload_bytes % period; n > 0; at = 0) {
        int64_t part = n < period - at ? n : period - at;
        if (memcmp(data, expected + at, part)) return false;
        data += part;
        n -= part;
    }
    return true;
}

static void take(struct client *c, const char *data, int64_t n, int64_t at_us) {
    if (!is_right(c, data, n)) c->state = BROKEN;
    if (!c->payload_bytes) note(&first_chunk, at_us - c->sent_us);
    c->payload_bytes += n;
    c->left -= n;
    if (stream_chunks) chunk_bytes += n;
}

static void read_head(struct client *c, const char *data, int64_t *used, int64_t n) {
    int64_t room = HEAD_MAX - 1 - c->in_bytes, part = n < room ? n : room;
    int before = c->in_bytes;
    memcpy(c->in + c->in_bytes, data, part);
    c->in_bytes += part;
    c->in[c->in_bytes] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    *used = part;
    if (!end) {
        if (part == room) c->state = BROKEN;
        return;
    }
    *used = end + 4 - c->in - before;
    end[2] = 0;
    char *length = strcasestr(c->in, "\r\ncontent-length:");
    c->closes = strcasestr(c->in, "\r\nconnection: close") != NULL;
    if (strncmp(c->in, "HTTP/1.1 200", 12)) c->state = BROKEN;
    else if (strcasestr(c->in, "\r\ntransfer-encoding: chunked")) c->state = SIZE_LINE;
    else if (length) c->left = atol(length + 17), c->state = LENGTH;
    else c->state = BROKEN;
    c->in_bytes = 0;  /* from here it gathers the digits of a chunk's size */
}

/* Parse received bytes; any deviation from the expected response is BROKEN. */
static void parse(struct client *c, const char *data, int64_t n, int64_t at_us) {
    while (n > 0 && c->state != BROKEN) {
        int64_t used = 1;
        switch (c->state) {
        case HEAD: read_head(c, data, &used, n); break;
        case LENGTH:
        case DATA:
            used = n < c->left ? n : c->left;
            take(c, data, used, at_us);
            if (!c->left && c->state != BROKEN) c->state = c->state == DATA ? DATA_END : DONE;
            break;
        case DATA_END:
            if (*data == '\n') c->state = SIZE_LINE;
            break;
        case SIZE_LINE:
            if (*data == '\n') {
                c->in[c->in_bytes] = 0;
                c->left = strtol(c->in, NULL, 16);
                c->state = c->left ? DATA : LAST_LINE;
                c->in_bytes = 0;
            } else if (c->in_bytes < 16) {
                c->in[c->in_bytes++] = *data;
            } else {
                c->state = BROKEN;
            }
            break;
        case LAST_LINE:
            if (*data == '\n') c->state = DONE;
            break;
        default: c->state = BROKEN;  /* more than the answer */
        }
        data += used;
        n -= used;
    }
    int64_t expected = stream_chunks ? (int64_t)stream_chunks * CHUNK_BYTES : JSON_BYTES;
    if (c->state == DONE && c->payload_bytes != expected) c->state = BROKEN;
}

/* Read; return true once the connection is ready for the next request. */
static bool listen_to(struct client *c) {
    static char data[256 * 1024];
    ssize_t n = recv(c->fd, data, sizeof data, 0);
    if (n < 0 && errno == EAGAIN) return false;
    int64_t at_us = now_us();
    if (n <= 0) {
        /* Between two answers, servers may close. */
        if (c->is_reused && c->state == HEAD && !c->in_bytes) reconnects++;
        else complain(c, "cut off");
        hang_up(c);
        return true;
    }
    int64_t before = c->payload_bytes;
    parse(c, data, n, at_us);
    if (is_paced && c->payload_bytes > before) {
        if (before) note(&gap, at_us - c->last_us);
        c->last_us = at_us;
    }
    if (c->state == BROKEN) {
        complain(c, "not as asked");
        hang_up(c);
        return true;
    }
    if (c->state != DONE) return false;
    requests++;
    note(&latency, at_us - c->sent_us);
    c->is_reused = true;
    if (c->closes) {
        reconnects++;
        hang_up(c);
    }
    return true;
}

static void set_request(const char *host, const char *port, const char *path, const char *model) {
    char body[JSON_BYTES + 1], start[256];
    snprintf(start, sizeof start, "{\"model\": \"%s\", \"messages\": [{\"role\": \"user\", "
             "\"content\": \"@\"}]}", model);
    pad(body, JSON_BYTES, start);
    request_bytes = snprintf(request, sizeof request,
        "POST %s HTTP/1.1\r\nHost: %s:%s\r\nContent-Type: application/json\r\n"
        "Content-Length: %d\r\n\r\n%s", path, host, port, JSON_BYTES, body);
    server.sin_family = AF_INET;
    server.sin_port = htons(atoi(port));
    if (inet_pton(AF_INET, host, &server.sin_addr) != 1) die("address");
}

static struct client *make_clients(int count) {
    struct client *all = calloc(count, sizeof *all);
    if (!all) die("calloc");
    for (int i = 0; i < count; i++) all[i].fd = -1;
    return all;
}

static void load(int count, double seconds) {
    int epoll = epoll_create1(0);
    struct client *all = make_clients(count);
    struct epoll_event events[EVENTS];
    int64_t start_us = now_us(), end_us = start_us + (int64_t)(seconds * 1e6);
    for (int i = 0; i < count; i++) ask(epoll, &all[i]);
    while (now_us() < end_us) {
        int ready = wait_until(epoll, events, end_us);
        for (int i = 0; i < ready; i++)
            if (listen_to(events[i].data.ptr)) ask(epoll, events[i].data.ptr);
    }
    double took = (now_us() - start_us) / 1e6;
    printf("{\"requests\": %lld, \"errors\": %lld, \"reconnects\": %lld, \"chunks\": %.1f, "
           "\"seconds\": %.6f", (long long)requests, (long long)errors, (long long)reconnects,
           (double)chunk_bytes / CHUNK_BYTES, took);
    print_series("latency", &latency);
    print_series("first_chunk", &first_chunk);
    print_series("gap", &gap);
    printf("}\n");
}

/* Send one request per connection; report when all are sent, and when each has its first byte. */
static void hold(int count) {
    int epoll = epoll_create1(0), answered = 0;
    struct client *all = make_clients(count);
    struct epoll_event events[EVENTS];
    int64_t start_us = now_us(), first_us = 0, last_us = 0;
    for (int i = 0; i < count; i++) ask(epoll, &all[i]);
    printf("{\"asked\": %d, \"start_s\": %.6f, \"end_s\": %.6f}\n", count, start_us / 1e6,
           now_us() / 1e6);
    while (answered < count) {
        int ready = wait_until(epoll, events, INT64_MAX);
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            bool had_none = !c->payload_bytes;
            bool ended = listen_to(c);
            if (had_none && (c->payload_bytes || ended)) {
                answered++;
                last_us = now_us();
                if (!first_us) first_us = last_us;
            }
        }
    }
    printf("{\"answered\": %d, \"errors\": %lld, \"first_s\": %.6f, \"last_s\": %.6f}\n", answered,
           (long long)errors, first_us / 1e6, last_us / 1e6);
    while (getchar() != EOF) {}
}

int main(int argc, char **argv) {
    set_up_process();
    if (argc == 2 && !strcmp(argv[1], "backend")) {
        serve();
    } else if (argc == 9 && !strcmp(argv[1], "load")) {
        /* The query tells the backend what to send: llama-swap routes known paths only. */
        char path[128] = "/v1/chat/completions";
        stream_chunks = atoi(argv[6]);
        is_paced = atoi(argv[7]) > 0;
        if (stream_chunks)
            snprintf(path, sizeof path, "/v1/chat/completions?/stream/%s/%s/%s", argv[6], argv[7], argv[8]);
        set_request(argv[2], argv[3], path, "m");
        load(atoi(argv[4]), atof(argv[5]));
    } else if (argc == 7 && !strcmp(argv[1], "hold")) {
        stream_chunks = strstr(argv[5], "idle") != NULL;
        set_request(argv[2], argv[3], argv[5], argv[6]);
        hold(atoi(argv[4]));
    } else {
        fprintf(stderr, "see the head of native.c\n");
        return 2;
    }
    return 0;
}
