/* What the programs of these tests have in common: the calls of the echo files, and a check that says where it failed. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define IOMMU "/dev/iommu"
#define CONTAINER "/dev/vfio/vfio"
#define GROUP "/dev/vfio/noiommu-977"
#define DEVICE "/dev/vfio/devices/noiommu-vfio977"

#define REVERSE 0x3b00
#define LIVE 0x3b01
#define INSTALL 0x3b02
#define GET 0x3b03
#define SLEEP 0x3b04
#define REAL_OPEN 0x3b05
#define COPY_TIME 0x3b06
#define SYSTEM_TIME 0x3b07
#define QUEUE 0x3b08
#define WORDS 0x3b09
#define FLAGS 0x3b0a
#define REMOVE 0x3b0b
#define WORD 0x3b0c
#define GET_PA 0x3b95

struct reverse {
    uint64_t address;
    uint64_t length;
    uint64_t answer;
};

#define CHECK(what)                                                                                     \
    do {                                                                                                \
        if (!(what)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s: errno %d (%s)\n", __FILE__, __LINE__, #what, errno,             \
                    strerror(errno));                                                                   \
            exit(1);                                                                                    \
        }                                                                                               \
    } while (0)

/* The call answers -1 with this errno. */
#define FAILS(what, number)                                                                             \
    do {                                                                                                \
        errno = 0;                                                                                      \
        long long answer_ = (long long)(what);                                                          \
        if (answer_ != -1 || errno != (number)) {                                                       \
            fprintf(stderr, "%s:%d: %s: %lld, errno %d (%s), not %s\n", __FILE__, __LINE__, #what,      \
                    answer_, errno, strerror(errno), #number);                                          \
            exit(1);                                                                                    \
        }                                                                                               \
    } while (0)

/* How many echo files are open, this one not counted. */
static inline int live(void) {
    int fd = open(IOMMU, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    int count = ioctl(fd, LIVE, 0);
    CHECK(close(fd) == 0);
    return count - 1;
}

/* A served descriptor answers our calls. */
static inline int is_echo(int fd) {
    return ioctl(fd, WORDS, 0x1234) == 0x1234;
}

#endif
