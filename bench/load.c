/* The load that plaintap-bench measures: TLS calls over the real library, timed from inside.
 *
 * The library is loaded by its path, so that one program drives BoringSSL and OpenSSL alike; what it needs is declared here,
 * so no headers are needed. One thread holds both ends of one connection: over `memory` their bytes go through BIOs that only
 * copy, over `tcp` through a loopback connection whose buffers hold a whole batch.
 *
 * Usage: tls-load LIBRARY CERT.PEM KEY.PEM memory|tcp
 *
 * It prints `ready`, then answers each line of its standard input with one line.
 *   cost SIZE CALLS BATCHES PAUSE_US
 *       BATCHES times: sleep, time CALLS writes of SIZE bytes, time the reads that take them. Prints the medians, in
 *       nanoseconds, of what writing SIZE bytes cost and what reading them cost.
 *   rate SIZE PER_SECOND MILLISECONDS
 *       Writes at that rate, 0 for as fast as it can; over tcp they are read again, over memory nobody reads, and nothing else
 *       may come after it. Prints the number of writes and the nanoseconds that they took.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FILETYPE_PEM = 1, CTRL_FLUSH = 11, RETRY_READ = 0x01 | 0x08, BIO_TYPE = 0x0400 | 111 };
enum { PIPE_SIZE = 16 << 20, MAX_SIZE = 1 << 20, MAX_BATCHES = 4096 };

typedef struct ssl_st SSL;
typedef struct bio_st BIO;

static struct {
    const void *(*TLS_method)(void);
    void *(*SSL_CTX_new)(const void *);
    int (*SSL_CTX_use_certificate_chain_file)(void *, const char *);
    int (*SSL_CTX_use_PrivateKey_file)(void *, const char *, int);
    SSL *(*SSL_new)(void *);
    void (*SSL_set_connect_state)(SSL *);
    void (*SSL_set_accept_state)(SSL *);
    int (*SSL_do_handshake)(SSL *);
    int (*SSL_set_fd)(SSL *, int);
    void (*SSL_set_bio)(SSL *, BIO *, BIO *);
    int (*SSL_read)(SSL *, void *, int);
    int (*SSL_write)(SSL *, const void *, int);
    void *(*BIO_meth_new)(int, const char *);
    int (*BIO_meth_set_read)(void *, int (*)(BIO *, char *, int));
    int (*BIO_meth_set_write)(void *, int (*)(BIO *, const char *, int));
    int (*BIO_meth_set_ctrl)(void *, long (*)(BIO *, int, long, void *));
    BIO *(*BIO_new)(const void *);
    void (*BIO_set_data)(BIO *, void *);
    void *(*BIO_get_data)(BIO *);
    void (*BIO_set_init)(BIO *, int);
    void (*BIO_set_flags)(BIO *, int);
    void (*BIO_clear_flags)(BIO *, int);
} tls;

struct pipe {
    unsigned char *bytes;
    size_t start, end;
    int discards;
};

struct ends {
    struct pipe *from, *to;
};

static struct pipe pipes[2];
static struct ends client_ends = {&pipes[1], &pipes[0]}, server_ends = {&pipes[0], &pipes[1]};
static unsigned char payload[MAX_SIZE], got[MAX_SIZE];

static void die(const char *what) {
    fprintf(stderr, "tls-load: %s (errno: %s)\n", what, strerror(errno));
    _exit(1);
}

static void load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (library == NULL) die(dlerror());
#define LOAD(function) \
    if ((*(void **)&tls.function = dlsym(library, #function)) == NULL) die("no " #function " in the library")
    LOAD(TLS_method);
    LOAD(SSL_CTX_new);
    LOAD(SSL_CTX_use_certificate_chain_file);
    LOAD(SSL_CTX_use_PrivateKey_file);
    LOAD(SSL_new);
    LOAD(SSL_set_connect_state);
    LOAD(SSL_set_accept_state);
    LOAD(SSL_do_handshake);
    LOAD(SSL_set_fd);
    LOAD(SSL_set_bio);
    LOAD(SSL_read);
    LOAD(SSL_write);
    LOAD(BIO_meth_new);
    LOAD(BIO_meth_set_read);
    LOAD(BIO_meth_set_write);
    LOAD(BIO_meth_set_ctrl);
    LOAD(BIO_new);
    LOAD(BIO_set_data);
    LOAD(BIO_get_data);
    LOAD(BIO_set_init);
    LOAD(BIO_set_flags);
    LOAD(BIO_clear_flags);
#undef LOAD
}

static int take(BIO *bio, char *to, int room) {
    struct pipe *pipe = ((struct ends *)tls.BIO_get_data(bio))->from;
    tls.BIO_clear_flags(bio, RETRY_READ);
    size_t size = pipe->end - pipe->start;
    if (size == 0) {
        tls.BIO_set_flags(bio, RETRY_READ);
        return -1;
    }
    if (size > (size_t)room) size = (size_t)room;
    memcpy(to, pipe->bytes + pipe->start, size);
    pipe->start += size;
    if (pipe->start == pipe->end) pipe->start = pipe->end = 0;
    return (int)size;
}

static int put(BIO *bio, const char *from, int size) {
    struct pipe *pipe = ((struct ends *)tls.BIO_get_data(bio))->to;
    if (pipe->discards) pipe->end = 0;
    if (pipe->end + (size_t)size > PIPE_SIZE) die("a batch does not fit into the pipe");
    memcpy(pipe->bytes + pipe->end, from, (size_t)size);
    pipe->end += (size_t)size;
    return size;
}

static long control(BIO *bio, int command, long number, void *pointer) {
    (void)bio, (void)number, (void)pointer;
    return command == CTRL_FLUSH;
}

static void over_memory(SSL *client, SSL *server) {
    void *method = tls.BIO_meth_new(BIO_TYPE, "pipe");
    if (method == NULL) die("BIO_meth_new");
    tls.BIO_meth_set_read(method, take);
    tls.BIO_meth_set_write(method, put);
    tls.BIO_meth_set_ctrl(method, control);
    for (int i = 0; i < 2; i++) {
        pipes[i].bytes = malloc(PIPE_SIZE);
        if (pipes[i].bytes == NULL) die("malloc");
        memset(pipes[i].bytes, 1, PIPE_SIZE);
        BIO *bio = tls.BIO_new(method);
        if (bio == NULL) die("BIO_new");
        tls.BIO_set_data(bio, i == 0 ? &client_ends : &server_ends);
        tls.BIO_set_init(bio, 1);
        tls.SSL_set_bio(i == 0 ? client : server, bio, bio);
    }
}

static void tune(int fd) {
    int one = 1, size = PIPE_SIZE;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
        die("setsockopt, which needs root");
}

static void over_tcp(SSL *client, SSL *server) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), near = socket(AF_INET, SOCK_STREAM, 0);
    tune(listener);
    tune(near);
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0 ||
        connect(near, (struct sockaddr *)&address, size) != 0)
        die("loopback connection");
    int far = accept(listener, NULL, NULL);
    if (far < 0) die("accept");
    tune(far);
    if (tls.SSL_set_fd(client, near) != 1 || tls.SSL_set_fd(server, far) != 1) die("SSL_set_fd");
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void pause_for(int64_t ns) {
    struct timespec time = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    nanosleep(&time, NULL);
}

static void write_once(SSL *ssl, int size) {
    if (tls.SSL_write(ssl, payload, size) != size) die("SSL_write did not write all");
}

static void read_all(SSL *ssl, int size, int64_t bytes) {
    while (bytes > 0) {
        int count = tls.SSL_read(ssl, got, size);
        if (count <= 0) die("SSL_read");
        bytes -= count;
    }
}

static int ascending(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, ascending);
    return values[count / 2];
}

static void cost(SSL *client, SSL *server, int size, int calls, int batches, int pause_us) {
    static double writes[MAX_BATCHES], reads[MAX_BATCHES];
    if (size > MAX_SIZE || batches > MAX_BATCHES) die("cost: too much");
    for (int batch = 0; batch < batches; batch++) {
        pause_for((int64_t)pause_us * 1000);
        int64_t start = now();
        for (int call = 0; call < calls; call++) write_once(client, size);
        int64_t between = now();
        read_all(server, size, (int64_t)size * calls);
        reads[batch] = (double)(now() - between) / calls;
        writes[batch] = (double)(between - start) / calls;
    }
    printf("cost %.1f %.1f\n", median(writes, batches), median(reads, batches));
}

static void rate(SSL *client, SSL *server, int size, long per_second, long milliseconds) {
    int memory = pipes[0].bytes != NULL;
    pipes[0].discards = 1;
    int64_t start = now(), end = start + milliseconds * 1000000, time;
    long calls = 0;
    while ((time = now()) < end) {
        int64_t due = per_second == 0 ? calls + 64 : (time - start) * per_second / 1000000000;
        while (calls < due) {
            write_once(client, size);
            if (!memory) read_all(server, size, size);
            calls++;
        }
        if (per_second != 0) pause_for(200000);
    }
    printf("rate %ld %lld\n", calls, (long long)(time - start));
}

static void *accept_one(void *server) {
    if (tls.SSL_do_handshake(server) != 1) die("handshake of the server");
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 5) {
        fputs("usage: tls-load LIBRARY CERT.PEM KEY.PEM memory|tcp\n", stderr);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    load(arguments[1]);
    void *context = tls.SSL_CTX_new(tls.TLS_method());
    if (context == NULL || tls.SSL_CTX_use_certificate_chain_file(context, arguments[2]) != 1 ||
        tls.SSL_CTX_use_PrivateKey_file(context, arguments[3], FILETYPE_PEM) != 1)
        die("certificate");
    SSL *client = tls.SSL_new(context), *server = tls.SSL_new(context);
    if (client == NULL || server == NULL) die("SSL_new");
    tls.SSL_set_connect_state(client);
    tls.SSL_set_accept_state(server);
    int memory = strcmp(arguments[4], "memory") == 0;
    if (memory) {
        over_memory(client, server);
        int done = 0;
        for (int turn = 0; turn < 20 && done != 2; turn++)
            done = (tls.SSL_do_handshake(client) == 1) + (tls.SSL_do_handshake(server) == 1);
        if (done != 2) die("handshake");
    } else {
        over_tcp(client, server);
        pthread_t thread;
        if (pthread_create(&thread, NULL, accept_one, server) != 0) die("pthread_create");
        if (tls.SSL_do_handshake(client) != 1) die("handshake of the client");
        pthread_join(thread, NULL);
    }
    memset(payload, 'x', sizeof payload);
    /* Tickets that the server sent after its handshake are read with this. */
    write_once(server, 1);
    read_all(client, 1, 1);
    puts("ready");
    char line[128];
    while (fgets(line, sizeof line, stdin) != NULL) {
        int size, calls, batches, pause_us;
        long per_second, milliseconds;
        if (sscanf(line, "cost %d %d %d %d", &size, &calls, &batches, &pause_us) == 4)
            cost(client, server, size, calls, batches, pause_us);
        else if (sscanf(line, "rate %d %ld %ld", &size, &per_second, &milliseconds) == 3 && size <= MAX_SIZE)
            rate(client, server, size, per_second, milliseconds);
        else
            die("a line that makes no sense");
    }
    return 0;
}
