/* What cases.c and engine.c share: the library's functions by name, an end with a reason, and a payload's bytes.
 *
 * The library is loaded by its path, as in driver.c, and its functions are declared here. What it lacks is NULL.
 */
#ifndef PLAINTAP_COMMON_H
#define PLAINTAP_COMMON_H

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_method_st SSL_METHOD;
typedef struct ssl_session_st SSL_SESSION;
typedef struct bio_st BIO;
typedef struct bio_method_st BIO_METHOD;

/* The same in both libraries. Source: openssl, include/openssl/ssl.h; boringssl, include/openssl/ssl.h. */
enum { FILETYPE_PEM = 1, WANT_READ = 2, WANT_WRITE = 3, PARTIAL_WRITE = 1, CTRL_MODE = 33 };
/* OpenSSL's. Source: openssl, include/openssl/tls1.h. */
enum { CTRL_SET_HOST_NAME = 55 };

#define TLS_FUNCTIONS(F) \
    F(const SSL_METHOD *, TLS_method, (void)) \
    F(SSL_CTX *, SSL_CTX_new, (const SSL_METHOD *)) \
    F(int, SSL_CTX_use_certificate_chain_file, (SSL_CTX *, const char *)) \
    F(int, SSL_CTX_use_PrivateKey_file, (SSL_CTX *, const char *, int)) \
    F(int, SSL_CTX_set_max_early_data, (SSL_CTX *, uint32_t)) \
    F(SSL *, SSL_new, (SSL_CTX *)) \
    F(void, SSL_free, (SSL *)) \
    F(int, SSL_clear, (SSL *)) \
    F(int, SSL_set_fd, (SSL *, int)) \
    F(void, SSL_set_bio, (SSL *, BIO *, BIO *)) \
    F(void, SSL_set_connect_state, (SSL *)) \
    F(void, SSL_set_accept_state, (SSL *)) \
    F(int, SSL_do_handshake, (SSL *)) \
    F(int, SSL_read, (SSL *, void *, int)) \
    F(int, SSL_write, (SSL *, const void *, int)) \
    F(int, SSL_read_ex, (SSL *, void *, size_t, size_t *)) \
    F(int, SSL_write_ex, (SSL *, const void *, size_t, size_t *)) \
    F(int, SSL_read_early_data, (SSL *, void *, size_t, size_t *)) \
    F(int, SSL_write_early_data, (SSL *, const void *, size_t, size_t *)) \
    F(int, SSL_get_early_data_status, (const SSL *)) \
    F(SSL_SESSION *, SSL_get1_session, (SSL *)) \
    F(int, SSL_set_session, (SSL *, SSL_SESSION *)) \
    F(uint32_t, SSL_set_mode, (SSL *, uint32_t)) \
    F(int, SSL_set_tlsext_host_name, (SSL *, const char *)) \
    F(long, SSL_ctrl, (SSL *, int, long, void *)) \
    F(int, SSL_shutdown, (SSL *)) \
    F(int, SSL_get_error, (const SSL *, int)) \
    F(unsigned long, ERR_get_error, (void)) \
    F(void, ERR_clear_error, (void)) \
    F(void, ERR_error_string_n, (unsigned long, char *, size_t)) \
    F(BIO *, BIO_new, (const BIO_METHOD *)) \
    F(const BIO_METHOD *, BIO_s_mem, (void)) \
    F(int, BIO_new_bio_pair, (BIO **, size_t, BIO **, size_t)) \
    F(int, BIO_read, (BIO *, void *, int)) \
    F(int, BIO_write, (BIO *, const void *, int)) \
    F(size_t, BIO_ctrl_pending, (BIO *))

#define DECLARE(result, function, arguments) result(*function) arguments;
static struct { TLS_FUNCTIONS(DECLARE) } tls;
#undef DECLARE

static SSL_CTX *client_context, *server_context;

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
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

/* Byte `index` of the pattern `seed`: tests/src/pattern.rs computes the same. */
static unsigned char pattern(uint32_t seed, uint32_t index) {
    uint32_t x = (index + seed * 0x9E3779B1u) * 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    x ^= x >> 16;
    return (unsigned char)x;
}

static inline unsigned char *make_pattern(size_t size, uint32_t seed) {
    unsigned char *bytes = malloc(size + 1);
    if (bytes == NULL) die("malloc %zu: %s", size, strerror(errno));
    for (size_t i = 0; i < size; i++) bytes[i] = pattern(seed, (uint32_t)i);
    return bytes;
}

static SSL_CTX *new_context(const char *certificate, const char *key) {
    SSL_CTX *context = tls.SSL_CTX_new(tls.TLS_method());
    if (context == NULL) die_of_tls("SSL_CTX_new", NULL, 0);
    if (tls.SSL_CTX_use_certificate_chain_file(context, certificate) != 1) die_of_tls(certificate, NULL, 0);
    if (tls.SSL_CTX_use_PrivateKey_file(context, key, FILETYPE_PEM) != 1) die_of_tls(key, NULL, 0);
    return context;
}

/* Usage: PROGRAM --lib PATH --cert PEM --key PEM --name COMM. Threads are named COMM from here on. */
static void begin(int count, char **arguments, const char **certificate, const char **key) {
    const char *library = NULL, *name = NULL;
    for (int i = 1; i + 1 < count; i += 2) {
        if (strcmp(arguments[i], "--lib") == 0) library = arguments[i + 1];
        else if (strcmp(arguments[i], "--cert") == 0) *certificate = arguments[i + 1];
        else if (strcmp(arguments[i], "--key") == 0) *key = arguments[i + 1];
        else if (strcmp(arguments[i], "--name") == 0) name = arguments[i + 1];
        else die("unknown option %s", arguments[i]);
    }
    if (library == NULL || *certificate == NULL || *key == NULL || name == NULL)
        die("usage: %s --lib PATH --cert PEM --key PEM --name COMM", arguments[0]);
    prctl(PR_SET_NAME, name);
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    void *handle = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
    if (handle == NULL) die("dlopen: %s", dlerror());
#define FIND(result, function, arguments) *(void **)&tls.function = dlsym(handle, #function);
    TLS_FUNCTIONS(FIND)
#undef FIND
    client_context = new_context(*certificate, *key);
    server_context = new_context(*certificate, *key);
}

/* The two ends of a TCP connection over loopback. Its listener stays: it tells who opened a connection that is older than
 * the agent. */
static void connect_tcp(int *client, int *server) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        die("listening: %s", strerror(errno));
    *client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*client < 0 || connect(*client, (struct sockaddr *)&address, size) != 0) die("connect: %s", strerror(errno));
    *server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (*server < 0 || setsockopt(*client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 ||
        setsockopt(*server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
        die("accept: %s", strerror(errno));
}

static int local_port(int fd) {
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size) != 0) die("getsockname: %s", strerror(errno));
    return ntohs(address.sin_port);
}

#endif
