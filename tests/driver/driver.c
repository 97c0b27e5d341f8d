/* A TLS conversation on demand, over the real library.
 *
 * The library is loaded by its path, so that one program drives BoringSSL and OpenSSL alike through the functions that
 * both have; they are declared here, so no headers are needed. One process holds both ends of real loopback TCP
 * connections: a thread "drv-client" that connects and a thread "drv-server" that accepts. Neither is ever inside a
 * call of the library but while a command runs, so probes may come and go between two commands; `await` alone outlasts its
 * answer.
 *
 * Usage: tls-driver --lib PATH --cert PEM --key PEM [--address 127.0.0.1|::1] [--uid N]
 *
 * It prints a line of facts, then answers each line of its standard input with one line. SIDE is client or server.
 *   write SIDE SIZE SEED   SIDE writes SIZE bytes in one call; the other side reads and compares every one
 *   send SIDE SIZE SEED    SIDE writes them; nobody reads them yet
 *   read SIDE SIZE SEED    SIDE reads and compares SIZE bytes
 *   await SIDE SIZE SEED   SIDE begins to, and is still at it when the answer comes
 *   done SIDE              waits for the end of that
 *   peek SIDE SIZE SEED    SIDE peeks at SIZE bytes, at most a record, and leaves them there
 *   zero SIDE              SIDE writes nothing
 *   idle SIDE              SIDE tries to read where nothing is, without blocking
 *   hex SIDE BYTES         as write, with these bytes
 *   new                    one connection more, which the commands that follow use
 *   use N                  back to connection N, from 0
 *   sum SIZE SEED          FNV-1a of the pattern, for those who compute it too
 *   quit                   closes everything; so does the end of input
 * Whatever fails is named on standard error, and the program ends with 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 64, READ_SIZE = 65536, FILETYPE_PEM = 1 };

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_method_st SSL_METHOD;

static struct {
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
    void (*ERR_error_string_n)(unsigned long, char *, size_t);
} tls;

enum role { CLIENT, SERVER };
enum task { NOTHING, OPEN, WRITE, READ, PEEK, ZERO, IDLE, CLOSE };

/* One thread and what it was last told to do. `task` goes back to NOTHING when it is done. */
struct side {
    enum role role;
    const char *name;
    pthread_t thread;
    pid_t tid;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum task task;
    unsigned char *bytes;
    size_t size;
    int result;
    int calls;
    SSL *ssl[MAX_CONNECTIONS];
    int fd[MAX_CONNECTIONS];
};

static struct side sides[2] = {
    {.role = CLIENT, .name = "client", .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER},
    {.role = SERVER, .name = "server", .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER},
};
static SSL_CTX *context;
static int listener;
static struct sockaddr_storage server_address;
static socklen_t address_size;
static int connections, current;

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("tls-driver: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1);
}

/* Ends the program over a failed call of the library, with the first thing that it says of it. */
static void die_of_tls(const char *call, const SSL *ssl, int result) {
    int saved = errno;
    char text[256] = "no more is known";
    unsigned long code = tls.ERR_get_error();
    if (code != 0) tls.ERR_error_string_n(code, text, sizeof text);
    int error = ssl == NULL ? 0 : tls.SSL_get_error(ssl, result);
    die("%s gave %d, SSL_get_error %d: %s (errno: %s)", call, result, error, text, strerror(saved));
}

/* Byte `index` of the pattern `seed`: no two pieces of a payload look alike. tests/src/pattern.rs computes the same. */
static unsigned char pattern(uint32_t seed, uint32_t index) {
    uint32_t x = (index + seed * 0x9E3779B1u) * 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    x ^= x >> 16;
    return (unsigned char)x;
}

static void load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (library == NULL) die("dlopen: %s", dlerror());
#define LOAD(function) \
    if ((*(void **)&tls.function = dlsym(library, #function)) == NULL) die("dlsym " #function ": %s", dlerror())
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
    LOAD(ERR_error_string_n);
#undef LOAD
}

static void start_listening(const char *address) {
    struct sockaddr_in *v4 = (struct sockaddr_in *)&server_address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&server_address;
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        address_size = sizeof *v4;
    } else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        address_size = sizeof *v6;
    } else {
        die("--address %s: neither an IPv4 nor an IPv6 address", address);
    }
    listener = socket(server_address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0) die("socket: %s", strerror(errno));
    if (bind(listener, (struct sockaddr *)&server_address, address_size) != 0) die("bind %s: %s", address, strerror(errno));
    if (listen(listener, 16) != 0) die("listen: %s", strerror(errno));
    if (getsockname(listener, (struct sockaddr *)&server_address, &address_size) != 0)
        die("getsockname: %s", strerror(errno));
}

/* The port of an address of either family: it stands in the same place in both. */
static int port_of(const struct sockaddr_storage *address) {
    return ntohs(((const struct sockaddr_in *)address)->sin_port);
}

static int local_port(int fd) {
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size) != 0) die("getsockname: %s", strerror(errno));
    return port_of(&address);
}

static void open_connection(struct side *side) {
    int fd;
    if (side->role == CLIENT) {
        fd = socket(server_address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) die("socket: %s", strerror(errno));
        if (connect(fd, (struct sockaddr *)&server_address, address_size) != 0) die("connect: %s", strerror(errno));
    } else {
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) die("accept: %s", strerror(errno));
    }
    /* No timeout: whoever drives has one, and the kernel would not begin such a call again after a freeze. */
    int one = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) die("setsockopt: %s", strerror(errno));
    SSL *ssl = tls.SSL_new(context);
    if (ssl == NULL) die_of_tls("SSL_new", NULL, 0);
    int result = tls.SSL_set_fd(ssl, fd);
    if (result != 1) die_of_tls("SSL_set_fd", ssl, result);
    result = side->role == CLIENT ? tls.SSL_connect(ssl) : tls.SSL_accept(ssl);
    if (result != 1) die_of_tls(side->role == CLIENT ? "SSL_connect" : "SSL_accept", ssl, result);
    side->ssl[connections] = ssl;
    side->fd[connections] = fd;
}

static void compare(const struct side *side, const char *call, const unsigned char *got, size_t from, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (got[i] != side->bytes[from + i])
            die("%s of the %s: byte %zu is %02x, should be %02x", call, side->name, from + i, got[i], side->bytes[from + i]);
}

static void read_all(struct side *side, SSL *ssl) {
    static __thread unsigned char buffer[READ_SIZE];
    for (size_t done = 0; done < side->size; side->calls++) {
        size_t room = side->size - done < READ_SIZE ? side->size - done : READ_SIZE;
        int got = tls.SSL_read(ssl, buffer, (int)room);
        if (got <= 0) die_of_tls("SSL_read", ssl, got);
        compare(side, "SSL_read", buffer, done, (size_t)got);
        done += (size_t)got;
    }
}

/* Nobody else reads meanwhile, so a peek sees what the last one saw, and possibly more. */
static void peek_all(struct side *side, SSL *ssl) {
    static __thread unsigned char buffer[READ_SIZE];
    int got = 0;
    while ((size_t)got < side->size) {
        got = tls.SSL_peek(ssl, buffer, (int)side->size);
        if (got <= 0) die_of_tls("SSL_peek", ssl, got);
        side->calls++;
        if (side->calls > 1000) die("SSL_peek showed %d of %zu bytes: more than a record can't be peeked at", got, side->size);
    }
    compare(side, "SSL_peek", buffer, 0, side->size);
}

static void try_to_read(struct side *side, SSL *ssl) {
    unsigned char byte;
    int fd = side->fd[current], flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) die("fcntl: %s", strerror(errno));
    side->result = tls.SSL_read(ssl, &byte, 1);
    side->calls = 1;
    if (side->result > 0) die("SSL_read of the %s read a byte where nothing should be", side->name);
    if (fcntl(fd, F_SETFL, flags) != 0) die("fcntl: %s", strerror(errno));
}

static void perform(struct side *side) {
    SSL *ssl = side->ssl[current];
    side->result = 0;
    side->calls = 0;
    switch (side->task) {
    case OPEN:
        open_connection(side);
        break;
    case WRITE:
        side->result = tls.SSL_write(ssl, side->bytes, (int)side->size);
        if (side->result != (int)side->size) die_of_tls("SSL_write", ssl, side->result);
        side->calls = 1;
        break;
    case READ:
        read_all(side, ssl);
        break;
    case PEEK:
        peek_all(side, ssl);
        break;
    case ZERO:
        side->result = tls.SSL_write(ssl, "", 0);
        side->calls = 1;
        break;
    case IDLE:
        try_to_read(side, ssl);
        break;
    case CLOSE:
        for (int i = 0; i < connections; i++) {
            tls.SSL_shutdown(side->ssl[i]);
            tls.SSL_free(side->ssl[i]);
            close(side->fd[i]);
        }
        break;
    case NOTHING:
        break;
    }
}

static void *run_side(void *argument) {
    struct side *side = argument;
    char comm[16];
    snprintf(comm, sizeof comm, "drv-%s", side->name);
    prctl(PR_SET_NAME, comm);
    pthread_mutex_lock(&side->lock);
    side->tid = (pid_t)syscall(SYS_gettid);
    pthread_cond_broadcast(&side->changed);
    for (;;) {
        while (side->task == NOTHING) pthread_cond_wait(&side->changed, &side->lock);
        enum task task = side->task;
        pthread_mutex_unlock(&side->lock);
        perform(side);
        pthread_mutex_lock(&side->lock);
        side->task = NOTHING;
        pthread_cond_broadcast(&side->changed);
        if (task == CLOSE) break;
    }
    pthread_mutex_unlock(&side->lock);
    return NULL;
}

static void tell(struct side *side, enum task task, unsigned char *bytes, size_t size) {
    pthread_mutex_lock(&side->lock);
    side->bytes = bytes;
    side->size = size;
    side->task = task;
    pthread_cond_broadcast(&side->changed);
    pthread_mutex_unlock(&side->lock);
}

static void wait_for(struct side *side) {
    pthread_mutex_lock(&side->lock);
    while (side->task != NOTHING) pthread_cond_wait(&side->changed, &side->lock);
    pthread_mutex_unlock(&side->lock);
}

static void both(enum task task) {
    tell(&sides[SERVER], task, NULL, 0);
    tell(&sides[CLIENT], task, NULL, 0);
    wait_for(&sides[SERVER]);
    wait_for(&sides[CLIENT]);
}

static void open_another(void) {
    if (connections == MAX_CONNECTIONS) die("new: at most %d connections", MAX_CONNECTIONS);
    both(OPEN);
    current = connections++;
    printf("connected number=%d pid=%d client_tid=%d server_tid=%d client_port=%d server_port=%d version=%s\n", current,
           (int)getpid(), (int)sides[CLIENT].tid, (int)sides[SERVER].tid, local_port(sides[CLIENT].fd[current]),
           port_of(&server_address), tls.SSL_get_version(sides[CLIENT].ssl[current]));
}

static unsigned char *make_pattern(size_t size, uint32_t seed) {
    unsigned char *bytes = malloc(size + 1);
    if (bytes == NULL) die("malloc %zu: %s", size, strerror(errno));
    for (size_t i = 0; i < size; i++) bytes[i] = pattern(seed, (uint32_t)i);
    return bytes;
}

static unsigned char *parse_hex(const char *text, size_t *size) {
    *size = strlen(text) / 2;
    unsigned char *bytes = malloc(*size + 1);
    if (bytes == NULL) die("malloc %zu: %s", *size, strerror(errno));
    for (size_t i = 0; i < *size; i++)
        if (sscanf(text + 2 * i, "%2hhx", &bytes[i]) != 1) die("hex: not hexadecimal: %s", text + 2 * i);
    return bytes;
}

/* `side` writes and, where `reader` is not NULL, `reader` reads at the same time: the socket's buffers are smaller than
 * the largest payload. */
static void transfer(const char *word, struct side *side, enum task task, struct side *reader, unsigned char *bytes,
                     size_t size) {
    tell(side, task, bytes, size);
    if (reader != NULL) tell(reader, READ, bytes, size);
    wait_for(side);
    if (reader != NULL) wait_for(reader);
    printf("%s %s size=%zu calls=%d reads=%d\n", word, side->name, size, side->calls, reader == NULL ? 0 : reader->calls);
    free(bytes);
}

static void obey(char *line) {
    char word[16], name[16];
    size_t size;
    uint32_t seed;
    if (strcmp(line, "new") == 0) {
        open_another();
        return;
    }
    int chosen;
    if (sscanf(line, "use %d", &chosen) == 1) {
        if (chosen < 0 || chosen >= connections) die("use %d: there are %d connections", chosen, connections);
        current = chosen;
        printf("use number=%d\n", current);
        return;
    }
    if (sscanf(line, "sum %zu %" SCNu32, &size, &seed) == 2) {
        uint64_t sum = 0xcbf29ce484222325u;
        for (size_t i = 0; i < size; i++) sum = (sum ^ pattern(seed, (uint32_t)i)) * 0x100000001b3u;
        printf("sum value=%016" PRIx64 "\n", sum);
        return;
    }
    int read = 0;
    if (sscanf(line, "%15s %15s %n", word, name, &read) < 2) die("not a command: %s", line);
    struct side *side = strcmp(name, "client") == 0 ? &sides[CLIENT] : strcmp(name, "server") == 0 ? &sides[SERVER] : NULL;
    if (side == NULL) die("%s: neither client nor server: %s", word, name);
    struct side *other = &sides[side->role == CLIENT ? SERVER : CLIENT];
    if (strcmp(word, "zero") == 0 || strcmp(word, "idle") == 0) {
        tell(side, *word == 'z' ? ZERO : IDLE, NULL, 0);
        wait_for(side);
        printf("%s %s result=%d calls=%d\n", word, name, side->result, side->calls);
        return;
    }
    if (strcmp(word, "done") == 0) {
        wait_for(side);
        printf("done %s calls=%d\n", name, side->calls);
        free(side->bytes);
        side->bytes = NULL;
        return;
    }
    if (strcmp(word, "hex") == 0) {
        unsigned char *bytes = parse_hex(line + read, &size);
        transfer(word, side, WRITE, other, bytes, size);
        return;
    }
    if (sscanf(line + read, "%zu %" SCNu32, &size, &seed) != 2) die("%s wants SIZE and SEED: %s", word, line);
    if (strcmp(word, "write") == 0) transfer(word, side, WRITE, other, make_pattern(size, seed), size);
    else if (strcmp(word, "send") == 0) transfer(word, side, WRITE, NULL, make_pattern(size, seed), size);
    else if (strcmp(word, "read") == 0) transfer(word, side, READ, NULL, make_pattern(size, seed), size);
    else if (strcmp(word, "await") == 0) {
        tell(side, READ, make_pattern(size, seed), size);
        printf("await %s size=%zu\n", name, size);
    } else if (strcmp(word, "peek") == 0) transfer(word, side, PEEK, NULL, make_pattern(size, seed), size);
    else die("not a command: %s", line);
}

int main(int count, char **arguments) {
    const char *library = NULL, *certificate = NULL, *key = NULL, *address = "127.0.0.1";
    uid_t uid = getuid();
    for (int i = 1; i + 1 < count; i += 2) {
        if (strcmp(arguments[i], "--lib") == 0) library = arguments[i + 1];
        else if (strcmp(arguments[i], "--cert") == 0) certificate = arguments[i + 1];
        else if (strcmp(arguments[i], "--key") == 0) key = arguments[i + 1];
        else if (strcmp(arguments[i], "--address") == 0) address = arguments[i + 1];
        else if (strcmp(arguments[i], "--uid") == 0) uid = (uid_t)strtoul(arguments[i + 1], NULL, 10);
        else die("unknown option %s", arguments[i]);
    }
    if (library == NULL || certificate == NULL || key == NULL || count % 2 == 0)
        die("usage: tls-driver --lib PATH --cert PEM --key PEM [--address 127.0.0.1|::1] [--uid N]");
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    load(library);
    context = tls.SSL_CTX_new(tls.TLS_method());
    if (context == NULL) die_of_tls("SSL_CTX_new", NULL, 0);
    if (tls.SSL_CTX_use_certificate_chain_file(context, certificate) != 1) die_of_tls(certificate, NULL, 0);
    if (tls.SSL_CTX_use_PrivateKey_file(context, key, FILETYPE_PEM) != 1) die_of_tls(key, NULL, 0);
    /* The key's file may be root's alone. */
    if (setresuid(uid, uid, uid) != 0) die("setresuid %u: %s", uid, strerror(errno));
    start_listening(address);
    for (int i = 0; i < 2; i++) {
        int error = pthread_create(&sides[i].thread, NULL, run_side, &sides[i]);
        if (error != 0) die("pthread_create: %s", strerror(error));
        pthread_mutex_lock(&sides[i].lock);
        while (sides[i].tid == 0) pthread_cond_wait(&sides[i].changed, &sides[i].lock);
        pthread_mutex_unlock(&sides[i].lock);
    }
    open_another();

    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    while ((length = getline(&line, &room, stdin)) > 0) {
        if (line[length - 1] == '\n') line[length - 1] = '\0';
        if (strcmp(line, "quit") == 0) break;
        obey(line);
    }
    free(line);
    both(CLOSE);
    for (int i = 0; i < 2; i++) pthread_join(sides[i].thread, NULL);
    puts("bye");
    /* Without the library's own clean-up, which other threads may be in the way of. */
    fflush(NULL);
    _exit(0);
}
