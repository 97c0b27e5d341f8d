/* What programs do with a TLS library besides plain calls: one case a line of standard input.
 *
 * Both ends of each connection are in this process, over non-blocking loopback sockets with small buffers, so that calls
 * that carry much fail and are repeated. All is on the first thread unless a case says otherwise.
 *
 * Usage: tls-cases --lib PATH --cert PEM --key PEM --name COMM
 *
 * It prints `ready pid=…`; a case prints what facts it has, and last `done`.
 *   plain SIZE SEED     the client writes SIZE bytes of the pattern SEED, the server reads them and writes them back
 *   ex SIZE SEED        the same with SSL_write_ex and SSL_read_ex
 *   partial SIZE SEED   as plain, where a call may take a part
 *   nothing_ex          calls that end in ex and carry nothing, then as ex with 10 bytes of the pattern 1
 *   early SIZE SEED     a resumed connection with SIZE bytes of early data, then as plain with 10 bytes of the pattern 1
 *   refused SIZE SEED   the same, but the server refuses the early data, and the client writes it again
 *   reuse               as plain with 100 bytes of the pattern 1; freed; again with pattern 2 at the same address
 *   clear               the same with SSL_clear instead
 *   fork                plain with 100 of 1, then with 60 of 2 in a child, then with 30 of 3 here
 *   exec PATH           plain with 100 of 1, then runs PATH in place of this program
 *   killed              a child does plain with 100 of 1 and is killed in a blocking SSL_read; another with the same pid does
 *                       plain with 60 of 2
 *   leader              a child does plain with 100 of 1, its first thread ends, and another goes on with 60 of 2
 *   threads N C         N threads at once, over C connections, each writes and reads a line of its own
 *   name HOST           plain with 100 of 1 on a connection whose client asks for HOST
 *   open, again, shut   a connection; plain with 100 of 1 on it; its end
 * Whatever fails is named on standard error, and the program ends with 1.
 */
#define _GNU_SOURCE
#include "common.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sys/personality.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { MAX_SPARES = 1000, READ_SIZE = 65536, PATIENCE = 60000 };
/* OpenSSL's. Source: openssl, include/openssl/ssl.h. */
enum { READ_EARLY_SUCCESS = 1, READ_EARLY_FINISH = 2, EARLY_REJECTED = 1, EARLY_ACCEPTED = 2, MAX_EARLY = 16384 };

struct pair {
    SSL *client, *server;
    int client_fd, server_fd;
};

enum calls { PLAIN, EX };

static const char *certificate, *key;
static char **own_arguments;
static struct pair kept;

static int64_t milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static SSL *new_ssl(SSL_CTX *context) {
    SSL *ssl = tls.SSL_new(context);
    if (ssl == NULL) die_of_tls("SSL_new", NULL, 0);
    return ssl;
}

static void set_blocking(int fd, bool blocking) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK) != 0)
        die("fcntl: %s", strerror(errno));
}

/* A call that failed is to be repeated, or is the end. */
static void expect_again(const char *call, SSL *ssl, int result) {
    int error = tls.SSL_get_error(ssl, result);
    if (error != WANT_READ && error != WANT_WRITE) die_of_tls(call, ssl, result);
    tls.ERR_clear_error();
}

/* Gives two SSL objects the ends of a new TCP connection. */
static void give_sockets(struct pair *pair) {
    connect_tcp(&pair->client_fd, &pair->server_fd);
    int size = 32768;
    int fds[] = {pair->client_fd, pair->server_fd};
    for (int i = 0; i < 2; i++) {
        set_blocking(fds[i], false);
        if (setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) != 0) die("setsockopt: %s", strerror(errno));
    }
    if (tls.SSL_set_fd(pair->client, fds[0]) != 1 || tls.SSL_set_fd(pair->server, fds[1]) != 1)
        die_of_tls("SSL_set_fd", NULL, 0);
    tls.SSL_set_connect_state(pair->client);
    tls.SSL_set_accept_state(pair->server);
}

static void shake_hands(struct pair *pair) {
    bool client = false, server = false;
    int64_t deadline = milliseconds() + PATIENCE;
    while (!client || !server) {
        int result;
        if (!client && !(client = (result = tls.SSL_do_handshake(pair->client)) == 1))
            expect_again("the client's handshake", pair->client, result);
        if (!server && !(server = (result = tls.SSL_do_handshake(pair->server)) == 1))
            expect_again("the server's handshake", pair->server, result);
        if (milliseconds() > deadline) die("a handshake takes more than %d ms", PATIENCE);
    }
}

static void tell(const struct pair *pair, const char *word) {
    printf("%s client_port=%d server_port=%d client=%p server=%p\n", word, local_port(pair->client_fd),
           local_port(pair->server_fd), (void *)pair->client, (void *)pair->server);
}

static struct pair new_pair(void) {
    struct pair pair = {.client = new_ssl(client_context), .server = new_ssl(server_context)};
    give_sockets(&pair);
    shake_hands(&pair);
    return pair;
}

static void close_sockets(struct pair *pair) {
    tls.SSL_shutdown(pair->client);
    tls.SSL_shutdown(pair->server);
    close(pair->client_fd);
    close(pair->server_fd);
}

static void close_pair(struct pair *pair) {
    close_sockets(pair);
    tls.SSL_free(pair->client);
    tls.SSL_free(pair->server);
}

/* `from` writes `size` bytes, `to` reads and compares them; says how many calls moved bytes, and how many failed. */
static void transfer(SSL *from, SSL *to, size_t size, uint32_t seed, enum calls calls) {
    static unsigned char buffer[READ_SIZE];
    unsigned char *bytes = make_pattern(size, seed);
    size_t sent = 0, got = 0;
    int writes = 0, reads = 0, retries = 0;
    int64_t deadline = milliseconds() + PATIENCE;
    while (got < size) {
        if (sent < size) {
            size_t moved = 77;
            int result = calls == EX ? tls.SSL_write_ex(from, bytes + sent, size - sent, &moved)
                                     : tls.SSL_write(from, bytes + sent, (int)(size - sent));
            if (result > 0) {
                writes++;
                sent += calls == EX ? moved : (size_t)result;
            } else {
                expect_again("writing", from, result);
                retries++;
            }
        }
        size_t moved = 77;
        int result = calls == EX ? tls.SSL_read_ex(to, buffer, sizeof buffer, &moved)
                                 : tls.SSL_read(to, buffer, sizeof buffer);
        if (result > 0) {
            reads++;
            if (calls == PLAIN) moved = (size_t)result;
            if (moved > size - got || memcmp(buffer, bytes + got, moved) != 0) die("other bytes were read than written");
            got += moved;
        } else {
            expect_again("reading", to, result);
        }
        if (milliseconds() > deadline) die("%zu of %zu bytes after %d ms", got, size, PATIENCE);
    }
    free(bytes);
    printf("transfer size=%zu writes=%d reads=%d retries=%d\n", size, writes, reads, retries);
}

static void both_ways(struct pair *pair, size_t size, uint32_t seed, enum calls calls) {
    transfer(pair->client, pair->server, size, seed, calls);
    transfer(pair->server, pair->client, size, seed, calls);
}

static void new_both_ways(size_t size, uint32_t seed, enum calls calls, bool partial) {
    struct pair pair = new_pair();
    SSL *both[] = {pair.client, pair.server};
    for (int i = 0; partial && i < 2; i++) {
        if (tls.SSL_set_mode != NULL) tls.SSL_set_mode(both[i], PARTIAL_WRITE);
        else tls.SSL_ctrl(both[i], CTRL_MODE, PARTIAL_WRITE, NULL);
    }
    both_ways(&pair, size, seed, calls);
    close_pair(&pair);
}

static void nothing_ex(void) {
    struct pair pair = new_pair();
    unsigned char byte;
    size_t moved = 777;
    int result = tls.SSL_write_ex(pair.client, "", 0, &moved);
    printf("write_ex result=%d moved=%zu\n", result, moved);
    moved = 777;
    result = tls.SSL_read_ex(pair.server, &byte, 1, &moved);
    if (result != 0) die("SSL_read_ex read a byte where nothing should be");
    expect_again("reading", pair.server, result);
    printf("read_ex result=%d moved=%zu\n", result, moved);
    both_ways(&pair, 10, 1, EX);
    close_pair(&pair);
}

/* One connection for its session, then one that begins with early data. */
static void early(size_t size, uint32_t seed, bool refused) {
    static unsigned char buffer[READ_SIZE];
    if (tls.SSL_CTX_set_max_early_data(server_context, MAX_EARLY) != 1) die("SSL_CTX_set_max_early_data");
    struct pair first = new_pair();
    both_ways(&first, 10, 1, PLAIN);
    SSL_SESSION *session = tls.SSL_get1_session(first.client);
    close_pair(&first);

    /* Another context has other ticket keys. */
    SSL_CTX *context = refused ? new_context(certificate, key) : server_context;
    if (tls.SSL_CTX_set_max_early_data(context, MAX_EARLY) != 1) die("SSL_CTX_set_max_early_data");
    struct pair pair = {.client = new_ssl(client_context), .server = new_ssl(context)};
    give_sockets(&pair);
    if (tls.SSL_set_session(pair.client, session) != 1) die_of_tls("SSL_set_session", NULL, 0);
    unsigned char *bytes = make_pattern(size, seed);
    size_t sent = 0, got = 0, moved = 0;
    int64_t deadline = milliseconds() + PATIENCE;
    while (sent < size) {
        int result = tls.SSL_write_early_data(pair.client, bytes + sent, size - sent, &moved);
        if (result == 1) sent += moved;
        else expect_again("SSL_write_early_data", pair.client, result);
        if (milliseconds() > deadline) die("early data takes more than %d ms", PATIENCE);
    }
    bool connected = false;
    for (int result = 0; result != READ_EARLY_FINISH;) {
        moved = 0;
        result = tls.SSL_read_early_data(pair.server, buffer + got, sizeof buffer - got, &moved);
        got += moved;
        if (result == 0) expect_again("SSL_read_early_data", pair.server, -1);
        /* The client says that its early data is over once the server has had all. */
        if (!connected && (refused || got == size)) {
            int shaken = tls.SSL_do_handshake(pair.client);
            if (!(connected = shaken == 1)) expect_again("the client's handshake", pair.client, shaken);
        }
        if (milliseconds() > deadline) die("early data takes more than %d ms", PATIENCE);
    }
    shake_hands(&pair);
    int status = tls.SSL_get_early_data_status(pair.client);
    if (status != (refused ? EARLY_REJECTED : EARLY_ACCEPTED)) die("the early data's status is %d", status);
    if (got != (refused ? 0 : size) || memcmp(buffer, bytes, got) != 0) die("the server had %zu bytes of early data", got);
    if (refused) transfer(pair.client, pair.server, size, seed, PLAIN);
    both_ways(&pair, 10, 1, PLAIN);
    tell(&pair, "early");
    close_pair(&pair);
    free(bytes);
}

static void reuse(void) {
    struct pair pair = new_pair();
    both_ways(&pair, 100, 1, PLAIN);
    tell(&pair, "before");
    SSL *old = pair.client, *spares[MAX_SPARES];
    int spare_count = 0;
    close_pair(&pair);
    for (;;) {
        pair.client = new_ssl(client_context);
        if (pair.client == old) break;
        if (spare_count == MAX_SPARES) die("the address of a freed SSL object does not come again");
        spares[spare_count++] = pair.client;
    }
    pair.server = new_ssl(server_context);
    give_sockets(&pair);
    shake_hands(&pair);
    both_ways(&pair, 100, 2, PLAIN);
    tell(&pair, "after");
    close_pair(&pair);
    while (spare_count > 0) tls.SSL_free(spares[--spare_count]);
}

static void clear(void) {
    struct pair pair = new_pair();
    both_ways(&pair, 100, 1, PLAIN);
    tell(&pair, "before");
    close_sockets(&pair);
    if (tls.SSL_clear(pair.client) != 1 || tls.SSL_clear(pair.server) != 1) die_of_tls("SSL_clear", NULL, 0);
    give_sockets(&pair);
    shake_hands(&pair);
    both_ways(&pair, 100, 2, PLAIN);
    tell(&pair, "after");
    close_pair(&pair);
}

static void wait_for(pid_t child) {
    int status;
    if (waitpid(child, &status, 0) != child) die("waitpid: %s", strerror(errno));
    if (status != 0 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)) die("a child ended with %#x", status);
}

static void fork_connected(void) {
    struct pair pair = new_pair();
    both_ways(&pair, 100, 1, PLAIN);
    pid_t child = fork();
    if (child < 0) die("fork: %s", strerror(errno));
    if (child == 0) {
        /* Both ends move on together, so the parent's stay as they were. */
        struct pair copy = pair;
        transfer(copy.client, copy.server, 60, 2, PLAIN);
        _exit(0);
    }
    wait_for(child);
    printf("child pid=%d\n", (int)child);
    transfer(pair.client, pair.server, 30, 3, PLAIN);
    tell(&pair, "pair");
    close_pair(&pair);
}

static void run_instead(const char *path) {
    struct pair pair = new_pair();
    transfer(pair.client, pair.server, 100, 1, PLAIN);
    tell(&pair, "pair");
    puts("done");
    /* So that the next program's SSL objects have the addresses of the one after it. */
    if (personality(ADDR_NO_RANDOMIZE) < 0) die("personality: %s", strerror(errno));
    execv(path, own_arguments);
    die("execv %s: %s", path, strerror(errno));
}

/* Forks a child whose pid is `pid`. */
static pid_t fork_as(pid_t pid) {
    struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&pid, .set_tid_size = 1};
    pid_t child = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (child < 0) die("clone3 for pid %d: %s", (int)pid, strerror(errno));
    return child;
}

static void killed(void) {
    int told[2];
    if (pipe2(told, O_CLOEXEC) != 0) die("pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child < 0) die("fork: %s", strerror(errno));
    if (child == 0) {
        struct pair pair = new_pair();
        transfer(pair.client, pair.server, 100, 1, PLAIN);
        tell(&pair, "before");
        set_blocking(pair.client_fd, true);
        if (write(told[1], "x", 1) != 1) die("write: %s", strerror(errno));
        unsigned char byte;
        die("SSL_read gave %d", tls.SSL_read(pair.client, &byte, 1));
    }
    char byte;
    if (read(told[0], &byte, 1) != 1) die("the child ended");
    /* Until it waits in the kernel for the socket. */
    char path[64], state = 'R';
    snprintf(path, sizeof path, "/proc/%d/stat", (int)child);
    while (state != 'S') {
        FILE *stat = fopen(path, "r");
        if (stat == NULL || fscanf(stat, "%*d %*s %c", &state) != 1) die("%s can't be read", path);
        fclose(stat);
    }
    kill(child, SIGKILL);
    wait_for(child);
    if (fork_as(child) == 0) {
        struct pair pair = new_pair();
        transfer(pair.client, pair.server, 60, 2, PLAIN);
        tell(&pair, "after");
        _exit(0);
    }
    wait_for(child);
    printf("child pid=%d\n", (int)child);
}

static void *go_on(void *argument) {
    struct pair *pair = argument;
    char path[64], state = 'R';
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)getpid());
    while (state != 'Z') {
        FILE *stat = fopen(path, "r");
        if (stat == NULL || fscanf(stat, "%*d %*s %c", &state) != 1) die("%s can't be read", path);
        fclose(stat);
    }
    transfer(pair->client, pair->server, 60, 2, PLAIN);
    tell(pair, "after");
    _exit(0);
}

static void leader_ends(void) {
    pid_t child = fork();
    if (child < 0) die("fork: %s", strerror(errno));
    if (child == 0) {
        static struct pair pair;
        pair = new_pair();
        transfer(pair.client, pair.server, 100, 1, PLAIN);
        tell(&pair, "before");
        pthread_t thread;
        if (pthread_create(&thread, NULL, go_on, &pair) != 0) die("pthread_create");
        syscall(SYS_exit, 0);
    }
    wait_for(child);
    printf("child pid=%d\n", (int)child);
}

static pthread_barrier_t all_there;
static pthread_mutex_t locks[64];
static struct pair pairs[64];
static int pair_count;

static void *write_a_line(void *argument) {
    int number = (int)(intptr_t)argument, index = number % pair_count;
    char line[64], got[64];
    int size = snprintf(line, sizeof line, "thread %d tid %d\n", number, (int)syscall(SYS_gettid));
    pthread_barrier_wait(&all_there);
    pthread_mutex_lock(&locks[index]);
    int result = tls.SSL_write(pairs[index].client, line, size);
    if (result != size) die_of_tls("SSL_write", pairs[index].client, result);
    int64_t deadline = milliseconds() + PATIENCE;
    while ((result = tls.SSL_read(pairs[index].server, got, sizeof got)) <= 0) {
        expect_again("reading", pairs[index].server, result);
        if (milliseconds() > deadline) die("no line after %d ms", PATIENCE);
    }
    if (result != size || memcmp(line, got, (size_t)size) != 0) die("another line was read than written");
    pthread_mutex_unlock(&locks[index]);
    /* All are there until all have written. */
    pthread_barrier_wait(&all_there);
    return NULL;
}

static void many_threads(int count, int connections) {
    if (connections > 64) die("at most 64 connections");
    pair_count = connections;
    for (int i = 0; i < connections; i++) {
        pthread_mutex_init(&locks[i], NULL);
        pairs[i] = new_pair();
    }
    pthread_t *threads = calloc((size_t)count, sizeof *threads);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 128 << 10);
    pthread_barrier_init(&all_there, NULL, (unsigned)count);
    for (int i = 0; i < count; i++) {
        int error = pthread_create(&threads[i], &attributes, write_a_line, (void *)(intptr_t)i);
        if (error != 0) die("pthread_create %d: %s", i, strerror(error));
    }
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < connections; i++) close_pair(&pairs[i]);
    free(threads);
}

static void with_name(const char *host) {
    struct pair pair = {.client = new_ssl(client_context), .server = new_ssl(server_context)};
    long result = tls.SSL_set_tlsext_host_name != NULL ? tls.SSL_set_tlsext_host_name(pair.client, host)
                                                       : tls.SSL_ctrl(pair.client, CTRL_SET_HOST_NAME, 0, (void *)host);
    if (result != 1) die_of_tls("setting the host name", NULL, (int)result);
    give_sockets(&pair);
    shake_hands(&pair);
    both_ways(&pair, 100, 1, PLAIN);
    close_pair(&pair);
}

static void obey(const char *line) {
    char word[16], text[512];
    size_t size = 0;
    uint32_t seed = 0;
    int count, connections;
    if (sscanf(line, "%15s %zu %u", word, &size, &seed) < 1) die("not a case: %s", line);
    if (strcmp(word, "plain") == 0) new_both_ways(size, seed, PLAIN, false);
    else if (strcmp(word, "ex") == 0) new_both_ways(size, seed, EX, false);
    else if (strcmp(word, "partial") == 0) new_both_ways(size, seed, PLAIN, true);
    else if (strcmp(word, "nothing_ex") == 0) nothing_ex();
    else if (strcmp(word, "early") == 0) early(size, seed, false);
    else if (strcmp(word, "refused") == 0) early(size, seed, true);
    else if (strcmp(word, "reuse") == 0) reuse();
    else if (strcmp(word, "clear") == 0) clear();
    else if (strcmp(word, "fork") == 0) fork_connected();
    else if (sscanf(line, "exec %511s", text) == 1) run_instead(text);
    else if (strcmp(word, "killed") == 0) killed();
    else if (strcmp(word, "leader") == 0) leader_ends();
    else if (sscanf(line, "threads %d %d", &count, &connections) == 2) many_threads(count, connections);
    else if (sscanf(line, "name %511s", text) == 1) with_name(text);
    else if (strcmp(word, "open") == 0) kept = new_pair();
    else if (strcmp(word, "again") == 0) both_ways(&kept, 100, 1, PLAIN);
    else if (strcmp(word, "shut") == 0) close_pair(&kept);
    else die("not a case: %s", line);
    puts("done");
}

int main(int count, char **arguments) {
    own_arguments = arguments;
    begin(count, arguments, &certificate, &key);
    printf("ready pid=%d\n", (int)getpid());
    char line[600];
    while (fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        obey(line);
    }
    /* Without the library's own clean-up, which other threads may be in the way of. */
    fflush(NULL);
    _exit(0);
}
