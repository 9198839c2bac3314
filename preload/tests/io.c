/* Calls on open files: ioctl, reading and writing, what poll says. */
#include "check.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/uio.h>

extern ssize_t __read_chk(int, void *, size_t, size_t);
extern ssize_t __pread_chk(int, void *, size_t, off_t, size_t);
extern ssize_t __pread64_chk(int, void *, size_t, off64_t, size_t);

int main(void) {
    int fd = open(DEVICE, O_RDWR), calls = open(IOMMU, O_RDWR);
    CHECK(fd >= 0 && calls >= 0);

    /* ioctl: 32 bits of the request, 64 of the argument; memory at the caller's addresses. */
    char text[] = "abcdef";
    struct reverse turn = {.address = (uintptr_t)text, .length = 6, .answer = 41};
    errno = 7;
    CHECK(ioctl(fd, REVERSE, &turn) == 41 && !strcmp(text, "fedcba") && errno == 7);
    CHECK(ioctl(fd, 0xffffffff00000000ul | REVERSE, &turn) == 41 && !strcmp(text, "abcdef"));
    FAILS(ioctl(fd, 0x3bff, 0), ENOTTY);
    int flag = 1;
    CHECK(ioctl(fd, FIONBIO, &flag) == 0 && (fcntl(fd, F_GETFL) & O_NONBLOCK));
    flag = 0;
    CHECK(ioctl(fd, FIONBIO, &flag) == 0 && !(fcntl(fd, F_GETFL) & O_NONBLOCK));
    CHECK(ioctl(fd, FIOCLEX) == 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    CHECK(ioctl(fd, FIONCLEX) == 0 && fcntl(fd, F_GETFD) == 0);
    FAILS(ioctl(fd, FIONREAD, &flag), ENOTTY);
    FAILS(ioctl(fd, TCGETS, &flag), ENOTTY);
    CHECK(!isatty(fd));

    /* Offsets, and the one that the file keeps. */
    char in[64];
    CHECK(pwrite(fd, "0123456789", 10, 100) == 10);
    CHECK(pread(fd, in, 10, 100) == 10 && !memcmp(in, "0123456789", 10));
    CHECK(pread64(fd, in, 5, 105) == 5 && !memcmp(in, "56789", 5));
    CHECK(pwrite64(fd, "ab", 2, 0) == 2 && write(fd, "AB", 2) == 2);
    CHECK(pread(fd, in, 3, 0) == 3 && !memcmp(in, "AB", 3));
    CHECK(write(fd, "CD", 2) == 2 && read(fd, in, 1) == 1);
    int same = dup(fd);
    CHECK(write(same, "x", 1) == 1 && pread(fd, in, 6, 0) == 6 && !memcmp(in, "ABCD\0x", 6));
    CHECK(close(same) == 0);
    CHECK(pread(fd, in, 10, (1 << 20) - 4) == 4 && pread(fd, in, 10, 1 << 20) == 0);
    FAILS(lseek(fd, 0, SEEK_SET), ESPIPE);
    FAILS(lseek64(fd, 0, SEEK_CUR), ESPIPE);
    FAILS(pread(fd, in, 1, -1), EINVAL);
    FAILS(pwrite(fd, in, 1, INT64_MIN), EINVAL);
    CHECK(read(fd, in, 0) == 0);

    /* The fortified forms. */
    CHECK(__pread_chk(fd, in, 4, 100, sizeof in) == 4 && !memcmp(in, "0123", 4));
    CHECK(__pread64_chk(fd, in, 4, 102, sizeof in) == 4 && !memcmp(in, "2345", 4));
    int fresh = open(DEVICE, O_RDWR);
    CHECK(pwrite(fresh, "fresh", 5, 0) == 5 && __read_chk(fresh, in, 5, sizeof in) == 5 && !memcmp(in, "fresh", 5));
    CHECK(close(fresh) == 0);

    /* In pieces. */
    char a[4], b[8];
    struct iovec pieces[] = {{a, 4}, {NULL, 0}, {b, 6}};
    CHECK(preadv(fd, pieces, 3, 100) == 10 && !memcmp(a, "0123", 4) && !memcmp(b, "456789", 6));
    CHECK(preadv64(fd, pieces, 3, (1 << 20) - 6) == 6);
    memcpy(a, "wxyz", 4);
    CHECK(pwritev(fd, pieces, 1, 200) == 4 && pread(fd, in, 4, 200) == 4 && !memcmp(in, "wxyz", 4));
    CHECK(pwritev64(fd, pieces, 1, 204) == 4 && pwritev2(fd, pieces, 1, 208, 0) == 4);
    CHECK(preadv2(fd, pieces, 1, 208, 0) == 4 && !memcmp(a, "wxyz", 4));
    FAILS(preadv2(fd, pieces, 1, 208, RWF_NOWAIT), EOPNOTSUPP);
    fresh = open(DEVICE, O_RDWR);
    CHECK(writev(fresh, pieces, 1) == 4 && writev(fresh, pieces, 1) == 4 && preadv2(fresh, pieces, 1, -1, 0) == 4);
    CHECK(pwritev2(fresh, pieces, 1, -1, 0) == 4 && pread(fresh, in, 17, 0) == 17 && in[15] == 0);
    CHECK(readv(fresh, pieces, 3) == 10);
    CHECK(close(fresh) == 0);
    FAILS(readv(fd, pieces, -1), EINVAL);
    FAILS(readv(fd, pieces, 1025), EINVAL);
    struct iovec wrong = {a, (size_t)-1};
    FAILS(readv(fd, &wrong, 1), EINVAL);
    FAILS(preadv(fd, pieces, 1, -1), EINVAL);

    /* What the kernel knows without asking the file. */
    FAILS(read(calls, in, 1), EINVAL);
    FAILS(write(calls, in, 1), EINVAL);
    FAILS(pread(calls, (void *)1, 1, 0), EINVAL);
    FAILS(readv(calls, pieces, 1), EINVAL);
    int only = open(DEVICE, O_RDONLY);
    FAILS(write(only, in, 1), EBADF);
    CHECK(read(only, in, 1) == 1 && close(only) == 0);
    only = open(DEVICE, O_WRONLY);
    FAILS(read(only, in, 1), EBADF);
    FAILS(pread(only, in, 1, 0), EBADF);
    CHECK(write(only, in, 1) == 1 && close(only) == 0);

    /* poll and its kind: always ready, and not for epoll; queues otherwise. */
    struct pollfd ready = {fd, POLLIN | POLLOUT | POLLPRI, 0};
    CHECK(poll(&ready, 1, 0) == 1 && ready.revents == (POLLIN | POLLOUT));
    fd_set reads;
    FD_ZERO(&reads);
    FD_SET(calls, &reads);
    CHECK(select(calls + 1, &reads, NULL, NULL, &(struct timeval){0, 0}) == 1 && FD_ISSET(calls, &reads));
    int events = epoll_create1(0);
    FAILS(epoll_ctl(events, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN, {0}}), EPERM);
    int queue = ioctl(fd, QUEUE, 0);
    CHECK(queue >= 0);
    ready.fd = queue;
    CHECK(poll(&ready, 1, 0) == 1 && ready.revents == POLLOUT);
    CHECK(epoll_ctl(events, EPOLL_CTL_ADD, queue, &(struct epoll_event){EPOLLIN, {0}}) == 0);
    CHECK(epoll_wait(events, &(struct epoll_event){0}, 1, 0) == 0);
    CHECK(write(queue, "queue", 5) == 5 && close(events) == 0);
    FAILS(pread(queue, in, 1, 0), ESPIPE);
    FAILS(preadv(queue, pieces, 1, 0), ESPIPE);
    FAILS(pwrite(queue, in, 1, 0), ESPIPE);

    CHECK(close(fd) == 0 && close(calls) == 0 && close(queue) == 0);
    CHECK(live() == 0);
    return 0;
}
