/* Many TLS connections at once, whose every byte can be told afterwards from where it stood.
 *
 * One process, threads at both ends of real loopback connections. Any thread of an end may use any of that end's SSL
 * objects, one at a time, over non-blocking sockets: calls fail and are repeated, move a part, peek, and meet each other.
 * Nothing is recorded: byte I of what connection C carries in direction D is a function of the seed, C, D and I, and
 * all that is told in the end is how many there were. The threads compare what they read, so that what goes wrong here
 * is never blamed on a witness. The libraries are loaded by path, as in driver.c; rounds use them in turn.
 *
 * Usage: tls-storm --seed SEED --cert PEM --key PEM --lib PATH [--lib PATH]
 *
 * It prints `ready pid=…`, then obeys its standard input, a round a line, and ends with it:
 *   CONNECTIONS THREADS RATE MILLISECONDS
 * THREADS at each end, RATE messages a second over all connections, 0 for as many as will go. A round prints
 *   thread tid=… side=…
 *   connection number=… client_port=… server_port=… version=…
 *   running
 *   total number=… side=… written=… read=… calls=…
 *   done messages=… bytes=… milliseconds=…
 * `running` before the first byte, and each `total` when nothing is under way any more. Numbers never repeat, ports may.
 * Whatever fails is named on standard error, and the program ends with 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 16, MAX_THREADS = 8, MAX_LIBRARIES = 2, LARGEST = 300000, READ_SIZE = 65536 };
enum { TABLE = 65521, TURN = 7919 };
/* Milliseconds that may pass without a byte moving where one should. */
enum { PATIENCE = 60000 };
/* The same in both libraries. Source: openssl, include/openssl/ssl.h; boringssl, include/openssl/ssl.h. */
enum { FILETYPE_PEM = 1, WANT_READ = 2, WANT_WRITE = 3, PARTIAL_WRITE = 1, MOVING_BUFFER = 2, CTRL_MODE = 33 };

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_method_st SSL_METHOD;

struct library {
    const SSL_METHOD *(*TLS_method)(void);
    SSL_CTX *(*SSL_CTX_new)(const SSL_METHOD *);
    int (*SSL_CTX_use_certificate_chain_file)(SSL_CTX *, const char *);
    int (*SSL_CTX_use_PrivateKey_file)(SSL_CTX *, const char *, int);
    SSL *(*SSL_new)(SSL_CTX *);
    int (*SSL_set_fd)(SSL *, int);
    int (*SSL_connect)(SSL *);
    int (*SSL_accept)(SSL *);
    int (*SSL_read)(SSL *, void *, int);
    int (*SSL_peek)(SSL *, void *, int);
    int (*SSL_write)(SSL *, const void *, int);
    int (*SSL_shutdown)(SSL *);
    int (*SSL_get_error)(const SSL *, int);
    const char *(*SSL_get_version)(const SSL *);
    void (*SSL_free)(SSL *);
    unsigned long (*ERR_get_error)(void);
    void (*ERR_clear_error)(void);
    void (*ERR_error_string_n)(unsigned long, char *, size_t);
    /* Not in both. */
    int (*SSL_read_ex)(SSL *, void *, size_t, size_t *);
    int (*SSL_write_ex)(SSL *, const void *, size_t, size_t *);
    uint32_t (*SSL_set_mode)(SSL *, uint32_t);
    long (*SSL_ctrl)(SSL *, int, long, void *);
    SSL_CTX *context;
};

enum { CLIENT, SERVER, SIDES };
static const char *const side_names[SIDES] = {"client", "server"};

/* One end of a connection. Whoever holds the lock may use it; what is atomic others may look at. */
struct end {
    pthread_mutex_t lock;
    SSL *ssl;
    int fd;
    unsigned char table[TABLE]; /* what it writes, see `fill` */
    unsigned char *message;
    size_t size, sent;       /* the message under way, and how much of it the library has taken */
    size_t offered;          /* the length of a call that is to be repeated, or 0 */
    uint64_t random;         /* sizes come from here: the same for every run of a seed */
    uint64_t calls;
    _Atomic bool under_way;
    bool more;               /* the library may hold bytes that the socket no longer shows */
    _Atomic uint64_t written, read;
};

static struct library libraries[MAX_LIBRARIES], *tls;
static struct end ends[MAX_CONNECTIONS][SIDES];
static uint64_t seed;
static int listener, connections, first_number;
static struct sockaddr_in address;
static uint64_t rate, round_start, round_end;
static _Atomic uint64_t messages, last_move;
static _Atomic int beginners; /* threads that have not seen the round end: they may begin a message */
static _Atomic int threads_told;
static pthread_barrier_t start;

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("tls-storm: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1);
}

static void die_of_tls(const char *call, int error) {
    int saved = errno;
    char text[256] = "no more is known";
    unsigned long code = tls->ERR_get_error();
    if (code != 0) tls->ERR_error_string_n(code, text, sizeof text);
    die("%s: SSL_get_error %d: %s (errno: %s)", call, error, text, strerror(saved));
}

static uint64_t milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* A bijection of words whose outputs look unrelated. Source: splitmix64, public domain. */
static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t next_random(uint64_t *state) { return mix(*state += 0x9e3779b97f4a7c15u); }

/* What `side` writes on connection `number`: blocks of TABLE bytes, each the same table turned by another amount, so that
 * a witness need only compare memory. TABLE is prime: no two places look alike. src/storm.rs computes the same. */
static void make_table(unsigned char *table, int number, int side) {
    uint64_t random = mix(seed ^ mix((uint64_t)number * 2 + (uint64_t)side + 1)), word = 0;
    for (size_t i = 0; i < TABLE; i++) {
        if (i % 8 == 0) word = next_random(&random);
        table[i] = (unsigned char)(word >> i % 8 * 8);
    }
}

static void fill(unsigned char *bytes, size_t size, const unsigned char *table, uint64_t offset) {
    while (size > 0) {
        size_t place = offset % TABLE, turned = (size_t)((place + offset / TABLE * TURN) % TABLE);
        size_t run = TABLE - (place > turned ? place : turned);
        if (run > size) run = size;
        memcpy(bytes, table + turned, run);
        bytes += run;
        size -= run;
        offset += run;
    }
}

static size_t between(uint64_t *random, size_t low, size_t high) { return low + next_random(random) % (high - low + 1); }

static size_t message_size(uint64_t *random) {
    unsigned kind = next_random(random) % 20;
    if (kind < 8) return between(random, 1, 64);
    if (kind < 14) return between(random, 65, 4096);
    if (kind < 18) return between(random, 16383, 16386);
    return between(random, 4097, LARGEST);
}

static size_t read_size(uint64_t *random) {
    unsigned kind = next_random(random) % 20;
    if (kind < 1) return between(random, 1, 64);
    if (kind < 5) return between(random, 65, 4096);
    return kind < 12 ? 16384 : READ_SIZE;
}

static void load(struct library *library, const char *path, const char *certificate, const char *key) {
    /* RTLD_LOCAL: OpenSSL and BoringSSL have the same names. */
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) die("dlopen: %s", dlerror());
    tls = library;
#define FIND(function) *(void **)&library->function = dlsym(handle, #function)
#define LOAD(function) \
    if ((FIND(function)) == NULL) die("dlsym " #function ": %s", dlerror())
    LOAD(TLS_method);
    LOAD(SSL_CTX_new);
    LOAD(SSL_CTX_use_certificate_chain_file);
    LOAD(SSL_CTX_use_PrivateKey_file);
    LOAD(SSL_new);
    LOAD(SSL_set_fd);
    LOAD(SSL_connect);
    LOAD(SSL_accept);
    LOAD(SSL_read);
    LOAD(SSL_peek);
    LOAD(SSL_write);
    LOAD(SSL_shutdown);
    LOAD(SSL_get_error);
    LOAD(SSL_get_version);
    LOAD(SSL_free);
    LOAD(ERR_get_error);
    LOAD(ERR_clear_error);
    LOAD(ERR_error_string_n);
    FIND(SSL_read_ex);
    FIND(SSL_write_ex);
    FIND(SSL_set_mode);
    FIND(SSL_ctrl);
#undef LOAD
#undef FIND
    if (library->SSL_set_mode == NULL && library->SSL_ctrl == NULL) die("%s: no way to set a mode", path);
    library->context = library->SSL_CTX_new(library->TLS_method());
    if (library->context == NULL) die_of_tls("SSL_CTX_new", 0);
    if (library->SSL_CTX_use_certificate_chain_file(library->context, certificate) != 1) die_of_tls(certificate, 0);
    if (library->SSL_CTX_use_PrivateKey_file(library->context, key, FILETYPE_PEM) != 1) die_of_tls(key, 0);
}

static void start_listening(void) {
    socklen_t size = sizeof address;
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 16) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        die("listening: %s", strerror(errno));
}

/* Ends the program unless the call that failed is to be repeated. The library wants its queue of errors empty before. */
static void expect_retry(const char *call, SSL *ssl, int result) {
    int error = tls->SSL_get_error(ssl, result);
    if (error != WANT_READ && error != WANT_WRITE) die_of_tls(call, error);
}

static void prepare(struct end *end, int number, int side, int fd) {
    int one = 1;
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
        die("preparing a socket: %s", strerror(errno));
    end->fd = fd;
    end->ssl = tls->SSL_new(tls->context);
    if (end->ssl == NULL || tls->SSL_set_fd(end->ssl, fd) != 1) die_of_tls("SSL_set_fd", 0);
    make_table(end->table, number, side);
    end->random = mix(seed + (uint64_t)number * 2 + (uint64_t)side);
    /* Every other connection takes what it can of a message. */
    uint32_t mode = MOVING_BUFFER | (number % 2 == 0 ? PARTIAL_WRITE : 0);
    if (tls->SSL_set_mode != NULL) tls->SSL_set_mode(end->ssl, mode);
    else tls->SSL_ctrl(end->ssl, CTRL_MODE, mode, NULL);
    end->size = end->sent = end->offered = 0;
    end->calls = 0;
    end->more = false;
    atomic_store(&end->under_way, false);
    atomic_store(&end->written, 0);
    atomic_store(&end->read, 0);
}

static void open_connection(int index) {
    struct end *client = &ends[index][CLIENT], *server = &ends[index][SERVER];
    struct sockaddr_in own;
    socklen_t size = sizeof own;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) die("connect: %s", strerror(errno));
    int accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (accepted < 0 || getsockname(fd, (struct sockaddr *)&own, &size) != 0) die("accept: %s", strerror(errno));
    prepare(client, first_number + index, CLIENT, fd);
    prepare(server, first_number + index, SERVER, accepted);
    bool connected = false, met = false;
    uint64_t deadline = milliseconds() + PATIENCE;
    while (!connected || !met) {
        int result;
        tls->ERR_clear_error();
        if (!connected && !(connected = (result = tls->SSL_connect(client->ssl)) == 1))
            expect_retry("SSL_connect", client->ssl, result);
        if (!met && !(met = (result = tls->SSL_accept(server->ssl)) == 1)) expect_retry("SSL_accept", server->ssl, result);
        if (milliseconds() > deadline) die("a handshake takes more than %d ms", PATIENCE);
    }
    printf("connection number=%d client_port=%d server_port=%d version=%s\n", first_number + index, ntohs(own.sin_port),
           ntohs(address.sin_port), tls->SSL_get_version(client->ssl));
}

/* Reads until there is nothing to read, or enough for a turn. Whether anything came. */
static bool read_some(int index, int side, uint64_t *random) {
    static __thread unsigned char got[READ_SIZE], expected[READ_SIZE];
    struct end *end = &ends[index][side];
    bool moved = false;
    end->more = true;
    for (int turn = 0; turn < 8; turn++) {
        size_t room = read_size(random), size = 0;
        unsigned way = next_random(random) % 16;
        tls->ERR_clear_error();
        if (way == 0) tls->SSL_peek(end->ssl, got, (int)room);
        tls->ERR_clear_error();
        end->calls++;
        int result;
        if (way >= 12 && tls->SSL_read_ex != NULL) {
            result = tls->SSL_read_ex(end->ssl, got, room, &size);
        } else {
            result = tls->SSL_read(end->ssl, got, (int)room);
            size = result > 0 ? (size_t)result : 0;
        }
        if (result <= 0) {
            expect_retry("SSL_read", end->ssl, result);
            end->more = false;
            break;
        }
        uint64_t offset = atomic_load(&end->read);
        fill(expected, size, ends[index][1 - side].table, offset);
        if (memcmp(got, expected, size) != 0)
            die("connection %d: what the %s read at %" PRIu64 " is not what was sent", first_number + index,
                side_names[side], offset);
        atomic_store(&end->read, offset + size);
        moved = true;
    }
    return moved;
}

/* Takes the right to send one message more, if the rate has one left. */
static bool ticket(uint64_t now) {
    if (now >= round_end) return false;
    uint64_t taken = atomic_fetch_add(&messages, 1);
    if (rate == 0 || taken < (now - round_start) * rate / 1000) return true;
    atomic_fetch_sub(&messages, 1);
    return false;
}

/* Writes on with the message under way, or begins another. Whether anything went. */
static bool write_some(int index, int side, uint64_t *random, uint64_t now) {
    struct end *end = &ends[index][side];
    if (end->sent == end->size) {
        /* Each end says something, be its thread held up for all of the round. */
        if (atomic_load(&end->written) == 0) atomic_fetch_add(&messages, 1);
        else if (!ticket(now)) return false;
        end->size = message_size(&end->random);
        end->sent = 0;
        fill(end->message, end->size, end->table, atomic_load(&end->written));
        atomic_store(&end->under_way, true);
    }
    size_t rest = end->size - end->sent, size = 0;
    /* What is repeated must be as long as it was. */
    if (end->offered != 0) rest = end->offered;
    int result;
    tls->ERR_clear_error();
    end->calls++;
    if (next_random(random) % 4 == 0 && tls->SSL_write_ex != NULL) {
        result = tls->SSL_write_ex(end->ssl, end->message + end->sent, rest, &size);
    } else {
        result = tls->SSL_write(end->ssl, end->message + end->sent, (int)rest);
        size = result > 0 ? (size_t)result : 0;
    }
    if (result <= 0) {
        end->offered = rest;
        expect_retry("SSL_write", end->ssl, result);
        return false;
    }
    end->offered = 0;
    end->sent += size;
    atomic_fetch_add(&end->written, size);
    if (end->sent == end->size) atomic_store(&end->under_way, false);
    return true;
}

/* Nobody begins a message any more, and all that was said was heard. */
static bool settled(void) {
    if (atomic_load(&beginners) > 0) return false;
    for (int i = 0; i < connections; i++)
        for (int side = 0; side < SIDES; side++)
            if (atomic_load(&ends[i][side].under_way) || atomic_load(&ends[i][side].written) == 0 ||
                atomic_load(&ends[i][side].written) != atomic_load(&ends[i][1 - side].read))
                return false;
    return true;
}

static void *run_thread(void *argument) {
    int side = (int)(intptr_t)argument;
    pid_t tid = (pid_t)syscall(SYS_gettid);
    uint64_t random = mix(seed + (uint64_t)atomic_fetch_add(&threads_told, 1));
    char comm[16];
    snprintf(comm, sizeof comm, "storm-%s", side_names[side]);
    prctl(PR_SET_NAME, comm);
    printf("thread tid=%d side=%s\n", (int)tid, side_names[side]);
    pthread_barrier_wait(&start); /* all threads are there; the main one opens the connections */
    pthread_barrier_wait(&start);
    bool moved = true, begins = true;
    for (;;) {
        struct pollfd watched[MAX_CONNECTIONS];
        for (int i = 0; i < connections; i++) {
            bool full = atomic_load(&ends[i][side].under_way);
            watched[i] = (struct pollfd){.fd = ends[i][side].fd, .events = (short)(POLLIN | (full ? POLLOUT : 0))};
        }
        if (poll(watched, (nfds_t)connections, moved ? 0 : 2) < 0) die("poll: %s", strerror(errno));
        moved = false;
        uint64_t now = milliseconds();
        int first = (int)(next_random(&random) % (uint64_t)connections);
        for (int i = 0; i < connections; i++) {
            int index = (first + i) % connections;
            struct end *end = &ends[index][side];
            if (pthread_mutex_trylock(&end->lock) != 0) continue;
            if (end->more || watched[index].revents & POLLIN) moved |= read_some(index, side, &random);
            /* A new message at one connection a turn, so that all get some; those under way wherever they can go on. */
            if (end->sent < end->size ? watched[index].revents & POLLOUT || end->offered == 0 : i == 0)
                moved |= write_some(index, side, &random, now);
            pthread_mutex_unlock(&end->lock);
        }
        if (moved) atomic_store(&last_move, now);
        if (now < round_end) continue;
        if (begins) atomic_fetch_sub(&beginners, 1);
        begins = false;
        if (settled()) return NULL;
        uint64_t last = atomic_load(&last_move);
        if (now > (last > round_end ? last : round_end) + PATIENCE) die("nothing moved for %d ms", PATIENCE);
    }
}

static void run_round(int threads, uint64_t duration) {
    pthread_t ids[MAX_THREADS * SIDES];
    uint64_t bytes = 0;
    pthread_barrier_init(&start, NULL, (unsigned)threads * SIDES + 1);
    for (int i = 0; i < threads * SIDES; i++) {
        int error = pthread_create(&ids[i], NULL, run_thread, (void *)(intptr_t)(i % SIDES));
        if (error != 0) die("pthread_create: %s", strerror(error));
    }
    pthread_barrier_wait(&start);
    for (int i = 0; i < connections; i++) open_connection(i);
    puts("running");
    atomic_store(&messages, 0);
    atomic_store(&beginners, threads * SIDES);
    round_start = milliseconds();
    round_end = round_start + duration;
    atomic_store(&last_move, round_start);
    pthread_barrier_wait(&start);
    for (int i = 0; i < threads * SIDES; i++) pthread_join(ids[i], NULL);
    pthread_barrier_destroy(&start);
    for (int i = 0; i < connections; i++)
        for (int side = 0; side < SIDES; side++) {
            struct end *end = &ends[i][side];
            printf("total number=%d side=%s written=%" PRIu64 " read=%" PRIu64 " calls=%" PRIu64 "\n", first_number + i,
                   side_names[side], atomic_load(&end->written), atomic_load(&end->read), end->calls);
            bytes += atomic_load(&end->written);
            tls->ERR_clear_error();
            tls->SSL_shutdown(end->ssl);
            tls->SSL_free(end->ssl);
            close(end->fd);
        }
    printf("done messages=%" PRIu64 " bytes=%" PRIu64 " milliseconds=%" PRIu64 "\n", atomic_load(&messages), bytes,
           milliseconds() - round_start);
}

int main(int count, char **arguments) {
    const char *paths[MAX_LIBRARIES], *certificate = NULL, *key = NULL;
    int library_count = 0;
    for (int i = 1; i + 1 < count; i += 2) {
        if (strcmp(arguments[i], "--seed") == 0) seed = strtoull(arguments[i + 1], NULL, 10);
        else if (strcmp(arguments[i], "--cert") == 0) certificate = arguments[i + 1];
        else if (strcmp(arguments[i], "--key") == 0) key = arguments[i + 1];
        else if (strcmp(arguments[i], "--lib") == 0 && library_count < MAX_LIBRARIES)
            paths[library_count++] = arguments[i + 1];
        else die("unknown option %s", arguments[i]);
    }
    if (library_count == 0 || certificate == NULL || key == NULL || count % 2 == 0)
        die("usage: tls-storm --seed SEED --cert PEM --key PEM --lib PATH [--lib PATH]");
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    /* Whoever watches must keep up, on however few CPUs. */
    if (setpriority(PRIO_PROCESS, 0, 15) != 0) die("setpriority: %s", strerror(errno));
    for (int i = 0; i < library_count; i++) load(&libraries[i], paths[i], certificate, key);
    start_listening();
    for (int i = 0; i < MAX_CONNECTIONS * SIDES; i++) {
        struct end *end = &ends[i / SIDES][i % SIDES];
        pthread_mutex_init(&end->lock, NULL);
        if ((end->message = malloc(LARGEST)) == NULL) die("malloc: %s", strerror(errno));
    }
    printf("ready pid=%d\n", (int)getpid());

    char line[256];
    for (int round = 0; fgets(line, sizeof line, stdin) != NULL; round++) {
        int threads;
        uint64_t duration;
        if (sscanf(line, "%d %d %" SCNu64 " %" SCNu64, &connections, &threads, &rate, &duration) != 4 || connections < 1 ||
            connections > MAX_CONNECTIONS || threads < 1 || threads > MAX_THREADS)
            die("not a round: %s", line);
        tls = &libraries[round % library_count];
        run_round(threads, duration);
        first_number += connections;
    }
    /* Without the library's own clean-up, which other threads may be in the way of. */
    fflush(NULL);
    _exit(0);
}
