/* TLS over memory, as Conscrypt's engine does it: the SSL objects have no socket, and the program moves the ciphertext.
 *
 * The client's ends of all connections are on the first thread, which is named COMM; each server's end has a thread of
 * its own. Messages are lines of SIZE bytes that say whose they are: `NAME client|server NUMBER`, with NAME A, B ...
 *
 * Usage: tls-engine --lib PATH --cert PEM --key PEM --name COMM
 *
 * It prints `ready pid=…`, then takes one line: CASE mem|pair EXCHANGES. It prints `connection name=… client_port=…
 * server_port=…` for each connection, shakes hands, prints `open`, waits for another line, has the exchanges, and prints
 * `done`. A case is:
 *   single     one connection
 *   turns      two connections, one after the other in each round
 *   batch      two: write to both, then send both; receive both, then read both. The handshakes too
 *   crossed    as batch, but B is sent and received first
 *   swapped    two: what was written to A is sent after B was written to, and the other way round; received likewise
 *   relay      one, but other threads send and receive
 *   proxy      one, and each message comes from a plain TCP connection and goes there
 *   polling    one, and while its server is slow to shake hands, the loop serves a plain TCP connection and asks the SSL
 *              object each time
 *   relayed_polling   as polling, but other threads send and receive
 *   chatter    as relay, and before each call a word goes over a plain TCP connection and back
 */
#define _GNU_SOURCE
#include "common.h"

#include <pthread.h>
#include <semaphore.h>

enum { SIZE = 100, BUFFER = 65536, MOST = 2 };

struct engine {
    const char *name, *role;
    SSL *ssl;
    BIO *in, *out;          /* the network's side: what was received goes into `in`, what is to be sent comes from `out` */
    int fd;
    unsigned char pending[BUFFER];
    size_t waiting;         /* bytes in `pending` */
    char message[SIZE + 1];
    size_t got;             /* bytes of the message being read */
    bool shaken;
};

static struct engine clients[MOST], servers[MOST];
static int engine_count, exchanges;
static bool pairs;
static sem_t servers_may_start;

static void send_all(int fd, const void *bytes, size_t size) {
    const char *next = bytes;
    while (size > 0) {
        ssize_t sent = send(fd, next, size, MSG_NOSIGNAL);
        if (sent <= 0) die("send: %s", strerror(errno));
        next += sent;
        size -= (size_t)sent;
    }
}

static void receive_all(int fd, void *bytes, size_t size) {
    if (recv(fd, bytes, size, MSG_WAITALL) != (ssize_t)size) die("recv: %s", strerror(errno));
}

static void make_engine(struct engine *engine, const char *name, bool client, int fd) {
    *engine = (struct engine){.name = name, .role = client ? "client" : "server", .fd = fd};
    engine->ssl = tls.SSL_new(client ? client_context : server_context);
    if (engine->ssl == NULL) die_of_tls("SSL_new", NULL, 0);
    if (pairs) {
        BIO *inner;
        if (tls.BIO_new_bio_pair(&inner, BUFFER, &engine->in, BUFFER) != 1) die_of_tls("BIO_new_bio_pair", NULL, 0);
        engine->out = engine->in;
        tls.SSL_set_bio(engine->ssl, inner, inner);
    } else {
        engine->in = tls.BIO_new(tls.BIO_s_mem());
        engine->out = tls.BIO_new(tls.BIO_s_mem());
        tls.SSL_set_bio(engine->ssl, engine->in, engine->out);
    }
    if (client) tls.SSL_set_connect_state(engine->ssl);
    else tls.SSL_set_accept_state(engine->ssl);
}

/* Takes what is to be sent, and does not send it. */
static void take(struct engine *engine) {
    while (tls.BIO_ctrl_pending(engine->out) > 0) {
        int size = tls.BIO_read(engine->out, engine->pending + engine->waiting, (int)(BUFFER - engine->waiting));
        if (size <= 0) die_of_tls("BIO_read", NULL, size);
        engine->waiting += (size_t)size;
    }
}

static void send_taken(struct engine *engine) {
    if (engine->waiting > 0) send_all(engine->fd, engine->pending, engine->waiting);
    engine->waiting = 0;
}

static void flush(struct engine *engine) {
    take(engine);
    send_taken(engine);
}

static void receive(struct engine *engine) {
    unsigned char buffer[16384];
    ssize_t size = recv(engine->fd, buffer, sizeof buffer, 0);
    if (size <= 0) die("recv: %s", size == 0 ? "the other side closed" : strerror(errno));
    int taken = tls.BIO_write(engine->in, buffer, (int)size);
    if (taken != size) die_of_tls("BIO_write", NULL, taken);
}

static void expect_want_read(const char *call, const struct engine *engine, int result) {
    if (tls.SSL_get_error(engine->ssl, result) != WANT_READ) die_of_tls(call, engine->ssl, result);
    tls.ERR_clear_error();
}

static void step(struct engine *engine) {
    if (engine->shaken) return;
    int result = tls.SSL_do_handshake(engine->ssl);
    if (!(engine->shaken = result == 1)) expect_want_read("SSL_do_handshake", engine, result);
}

static void shake_hands(struct engine *engine) {
    for (;;) {
        step(engine);
        flush(engine);
        if (engine->shaken) return;
        receive(engine);
    }
}

static void write_message(struct engine *engine, int number) {
    char message[SIZE + 1];
    memset(message, '.', SIZE);
    int size = snprintf(message, sizeof message, "%s %s %d ", engine->name, engine->role, number);
    message[size] = '.';
    message[SIZE - 1] = '\n';
    int result = tls.SSL_write(engine->ssl, message, SIZE);
    if (result != SIZE) die_of_tls("SSL_write", engine->ssl, result);
}

/* Reads what is there; says whether a message is whole now. */
static bool read_some(struct engine *engine) {
    int result = tls.SSL_read(engine->ssl, engine->message + engine->got, (int)(SIZE - engine->got));
    if (result <= 0) expect_want_read("SSL_read", engine, result);
    else engine->got += (size_t)result;
    if (engine->got < SIZE) return false;
    engine->got = 0;
    return true;
}

static void read_message(struct engine *engine) {
    while (!read_some(engine)) receive(engine);
}

static void *serve(void *argument) {
    struct engine *engine = argument;
    prctl(PR_SET_NAME, "engine-server");
    sem_wait(&servers_may_start);
    shake_hands(engine);
    for (int i = 0; i < exchanges; i++) {
        read_message(engine);
        write_message(engine, i);
        flush(engine);
    }
    return NULL;
}

/* Moves everything from one socket to another. */
static void *move(void *argument) {
    int *fds = argument;
    char buffer[16384];
    ssize_t size;
    while ((size = recv(fds[0], buffer, sizeof buffer, 0)) > 0) send_all(fds[1], buffer, (size_t)size);
    return NULL;
}

static void start_thread(void *(*run)(void *), void *argument) {
    pthread_t thread;
    int error = pthread_create(&thread, NULL, run, argument);
    if (error != 0) die("pthread_create: %s", strerror(error));
}

/* Puts threads between an engine and its TCP connection. */
static int relayed(int fd) {
    int ends[2], *up = malloc(2 * sizeof *up), *down = malloc(2 * sizeof *down);
    if (up == NULL || down == NULL || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) die("socketpair: %s", strerror(errno));
    up[0] = down[1] = ends[1];
    up[1] = down[0] = fd;
    start_thread(move, up);
    start_thread(move, down);
    return ends[0];
}

static void start_connections(int count, bool relay) {
    static const char *const names[MOST] = {"A", "B"};
    engine_count = count;
    for (int i = 0; i < count; i++) {
        int client, server;
        connect_tcp(&client, &server);
        printf("connection name=%s client_port=%d server_port=%d\n", names[i], local_port(client), local_port(server));
        make_engine(&clients[i], names[i], true, relay ? relayed(client) : client);
        make_engine(&servers[i], names[i], false, server);
        start_thread(serve, &servers[i]);
    }
}

static void let_servers_start(void) {
    for (int i = 0; i < engine_count; i++) sem_post(&servers_may_start);
}

/* A plain TCP connection to a thread that sends back what it gets. */
static int start_plain(void) {
    int client, server, *ends = malloc(2 * sizeof *ends);
    connect_tcp(&client, &server);
    if (ends == NULL) die("malloc");
    ends[0] = ends[1] = server;
    start_thread(move, ends);
    printf("plain client_port=%d server_port=%d\n", local_port(client), local_port(server));
    return client;
}

static void wait_for_line(void) {
    char line[64];
    puts("open");
    if (fgets(line, sizeof line, stdin) == NULL) _exit(0);
}

static void one_after_the_other(void) {
    let_servers_start();
    for (int i = 0; i < engine_count; i++) shake_hands(&clients[i]);
    wait_for_line();
    for (int round = 0; round < exchanges; round++) {
        for (int i = 0; i < engine_count; i++) {
            write_message(&clients[i], round);
            flush(&clients[i]);
            read_message(&clients[i]);
        }
    }
}

static void in_batches(bool crossed) {
    struct engine *first = &clients[crossed], *second = &clients[!crossed];
    let_servers_start();
    while (!clients[0].shaken || !clients[1].shaken) {
        step(&clients[0]);
        step(&clients[1]);
        flush(first);
        flush(second);
        if (!first->shaken) receive(first);
        if (!second->shaken) receive(second);
    }
    wait_for_line();
    for (int round = 0; round < exchanges; round++) {
        write_message(&clients[0], round);
        write_message(&clients[1], round);
        flush(first);
        flush(second);
        bool whole[2] = {false, false};
        while (!whole[0] || !whole[1]) {
            if (!whole[crossed]) receive(first);
            if (!whole[!crossed]) receive(second);
            for (int i = 0; i < 2; i++) whole[i] = whole[i] || read_some(&clients[i]);
        }
    }
}

static void swapped(void) {
    struct engine *a = &clients[0], *b = &clients[1];
    let_servers_start();
    shake_hands(a);
    shake_hands(b);
    /* The session tickets, which would be in the way. */
    for (int i = 0; i < 2; i++) {
        write_message(&clients[i], -1);
        flush(&clients[i]);
        read_message(&clients[i]);
    }
    wait_for_line();
    /* One round ahead, so that there is always something of the other to read. */
    for (int round = 0; round < exchanges - 1; round++) {
        write_message(a, round);
        take(a);
        send_taken(b);
        write_message(b, round);
        take(b);
        send_taken(a);
        receive(a);
        if (round > 1 && !read_some(b)) die("B's message is not whole");
        if (round > 0) receive(b);
        if (!read_some(a)) die("A's message is not whole");
    }
}

static void beside_plain(void) {
    int plain = start_plain();
    char word[SIZE];
    memset(word, 'p', sizeof word);
    let_servers_start();
    shake_hands(&clients[0]);
    wait_for_line();
    send_all(plain, word, sizeof word);
    for (int round = 0; round < exchanges; round++) {
        receive_all(plain, word, sizeof word);
        write_message(&clients[0], round);
        flush(&clients[0]);
        read_message(&clients[0]);
        send_all(plain, clients[0].message, SIZE);
    }
}

static void polling(void) {
    int plain = start_plain();
    char word[SIZE];
    memset(word, 'p', sizeof word);
    for (int i = 0; i < 10; i++) {
        step(&clients[0]);
        flush(&clients[0]);
        send_all(plain, word, sizeof word);
        receive_all(plain, word, sizeof word);
    }
    one_after_the_other();
}

static void chatter(void) {
    int plain = start_plain();
    char word[SIZE + 25];
    memset(word, 'p', sizeof word);
    let_servers_start();
    shake_hands(&clients[0]);
    wait_for_line();
    for (int round = 0; round < exchanges; round++) {
        write_message(&clients[0], round);
        flush(&clients[0]);
        send_all(plain, word, sizeof word);
        receive_all(plain, word, sizeof word);
        read_message(&clients[0]);
    }
}

int main(int count, char **arguments) {
    const char *certificate = NULL, *key = NULL;
    begin(count, arguments, &certificate, &key);
    printf("ready pid=%d\n", (int)getpid());
    char line[64], name[32], bios[8];
    if (fgets(line, sizeof line, stdin) == NULL) return 0;
    if (sscanf(line, "%31s %7s %d", name, bios, &exchanges) != 3) die("not a case: %s", line);
    pairs = strcmp(bios, "pair") == 0;
    sem_init(&servers_may_start, 0, 0);
    bool relay = strncmp(name, "relay", 5) == 0 || strcmp(name, "chatter") == 0;
    bool two = strcmp(name, "turns") == 0 || strcmp(name, "batch") == 0 || strcmp(name, "crossed") == 0 ||
               strcmp(name, "swapped") == 0;
    start_connections(two ? 2 : 1, relay);
    if (strcmp(name, "single") == 0 || strcmp(name, "turns") == 0 || strcmp(name, "relay") == 0) one_after_the_other();
    else if (strcmp(name, "batch") == 0) in_batches(false);
    else if (strcmp(name, "crossed") == 0) in_batches(true);
    else if (strcmp(name, "swapped") == 0) swapped();
    else if (strcmp(name, "proxy") == 0) beside_plain();
    else if (strcmp(name, "polling") == 0 || strcmp(name, "relayed_polling") == 0) polling();
    else if (strcmp(name, "chatter") == 0) chatter();
    else die("not a case: %s", name);
    puts("done");
    /* Its end waits for the end of input, so that nothing of it vanishes before it was looked at. */
    while (fgets(line, sizeof line, stdin) != NULL) {
    }
    /* Without the library's own clean-up, which other threads may be in the way of. */
    fflush(NULL);
    _exit(0);
}
