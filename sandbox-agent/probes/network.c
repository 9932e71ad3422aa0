/* Sockets of every kind. */
#include "attack.h"

#include <arpa/inet.h>
#include <net/ethernet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_in loopback(char **args) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)number(args))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return to;
}

/* tcp PORT: connects to the host's loopback. */
static long tcp(char **args) {
    struct sockaddr_in to = loopback(args);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof to);
}

/* listen: a port for others to connect to. */
static long listen_tcp(char **args) {
    (void)args;
    struct sockaddr_in any = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any) < 0 ? -1 : listen(fd, 1);
}

/* udp PORT: sends a datagram to the host's loopback. */
static long udp(char **args) {
    struct sockaddr_in to = loopback(args);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    return fd < 0 ? -1 : sendto(fd, "x", 1, 0, (struct sockaddr *)&to, sizeof to);
}

static long unix_to(const char *name, size_t length) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (length > sizeof to.sun_path) return errno = ENAMETOOLONG, -1;
    memcpy(to.sun_path, name, length);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
}

/* unix PATH */
static long unix_path(char **args) { return unix_to(*args, strlen(*args) + 1); }

/* abstract NAME */
static long unix_abstract(char **args) {
    char name[108] = "";
    strncpy(name + 1, *args, sizeof name - 2);
    return unix_to(name, 1 + strlen(name + 1));
}

static long netlink(char **args) {
    (void)args;
    return socket(AF_NETLINK, SOCK_RAW, 0);
}

static long vsock(char **args) {
    (void)args;
    return socket(AF_VSOCK, SOCK_STREAM, 0);
}

static long packet(char **args) {
    (void)args;
    return socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
}

static long raw(char **args) {
    (void)args;
    return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
}

/* A datagram goes wherever its sender says, from an end of a pair too. */
static long datagrams(char **args) {
    (void)args;
    int ends[2];
    return socketpair(AF_UNIX, SOCK_DGRAM, 0, ends);
}

/* No attack: what programs need of sockets. */
static long pair(char **args) {
    (void)args;
    int ends[2];
    return socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
}

const struct attack NETWORK[] = {
    {"tcp", tcp},         {"listen", listen_tcp},      {"udp", udp},     {"unix", unix_path}, {"abstract", unix_abstract},
    {"netlink", netlink}, {"vsock", vsock},            {"packet", packet}, {"raw", raw},      {"pair", pair},
    {"datagrams", datagrams},
    {NULL, NULL},
};
