/* Descriptors: copies, flags, closing by number and by range; a file lives until its last one. */
#include "check.h"
#include <linux/close_range.h>
#include <sys/socket.h>

int main(void) {
    int lowest = dup(0);
    CHECK(close(lowest) == 0);
    int fd = open(DEVICE, O_RDWR);
    CHECK(fd == lowest && live() == 1);

    /* Copies are one file. */
    int copy = dup(fd);
    CHECK(copy == fd + 1 && is_echo(copy) && live() == 1 && fcntl(copy, F_GETFD) == 0);
    CHECK(close(fd) == 0 && is_echo(copy) && live() == 1);
    CHECK(dup(copy) == fd && is_echo(fd));
    CHECK(close(copy) == 0 && live() == 1);
    CHECK((copy = fcntl(fd, F_DUPFD, 100)) == 100 && is_echo(100) && fcntl(100, F_GETFD) == 0);
    CHECK(fcntl(fd, F_DUPFD_CLOEXEC, 100) == 101 && is_echo(101) && fcntl(101, F_GETFD) == FD_CLOEXEC);
    FAILS(fcntl(fd, F_DUPFD, -1), EINVAL);
    CHECK(close(100) == 0 && close(101) == 0);

    /* Onto other numbers: of ours onto the kernel's, and the other way. */
    int null = open("/dev/null", O_RDWR);
    CHECK(dup2(fd, null) == null && is_echo(null) && fcntl(null, F_GETFD) == 0);
    CHECK(dup3(fd, null, O_CLOEXEC) == null && fcntl(null, F_GETFD) == FD_CLOEXEC);
    CHECK(dup2(fd, fd) == fd && is_echo(fd));
    FAILS(dup3(fd, fd, 0), EINVAL);
    FAILS(dup3(fd, null, 1), EINVAL);
    FAILS(dup2(fd, -1), EBADF);
    FAILS(dup2(1000, fd), EBADF);
    FAILS(dup2(1000, 1000), EBADF);
    CHECK(is_echo(fd) && is_echo(null));
    int zero = open("/dev/zero", O_RDWR);
    CHECK(dup2(zero, null) == null);
    FAILS(ioctl(null, WORDS, 1), ENOTTY);
    CHECK(live() == 1 && dup2(zero, fd) == fd && live() == 0);
    char byte = 1;
    CHECK(read(fd, &byte, 1) == 1 && byte == 0);
    CHECK(close(null) == 0 && close(zero) == 0 && close(fd) == 0);
    /* One of ours onto another of ours. */
    fd = open(DEVICE, O_RDWR);
    int other = open(DEVICE, O_RDWR);
    CHECK(live() == 2 && dup2(fd, other) == other && live() == 1);
    CHECK(close(fd) == 0 && live() == 1 && close(other) == 0 && live() == 0);

    /* Flags of descriptors, not of files. */
    fd = open(DEVICE, O_RDWR | O_CLOEXEC);
    copy = dup(fd);
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(copy, F_GETFD) == 0);
    CHECK(fcntl(fd, F_SETFD, 0) == 0 && fcntl(fd, F_GETFD) == 0);
    CHECK(fcntl(copy, F_SETFD, FD_CLOEXEC) == 0 && fcntl(copy, F_GETFD) == FD_CLOEXEC);
    CHECK(fcntl64(copy, F_SETFL, O_NONBLOCK) == 0 && (fcntl(fd, F_GETFL) & O_NONBLOCK));
    CHECK(close(copy) == 0);
    FAILS(close(copy), EBADF);
    FAILS(fcntl(copy, F_GETFD), EBADF);

    /* Ranges. */
    for (int number = 200; number < 210; number++)
        CHECK(dup2(number % 2 ? fd : 0, number) == number);
    CHECK(close_range(203, 204, 0) == 0);
    FAILS(ioctl(203, WORDS, 1), EBADF);
    FAILS(fcntl(204, F_GETFD), EBADF);
    CHECK(is_echo(201) && is_echo(205) && fcntl(202, F_GETFD) == 0);
    CHECK(close_range(205, 206, CLOSE_RANGE_CLOEXEC) == 0 && is_echo(205));
    CHECK(fcntl(205, F_GETFD) == FD_CLOEXEC && fcntl(206, F_GETFD) == FD_CLOEXEC && fcntl(207, F_GETFD) == 0);
    FAILS(close_range(10, 9, 0), EINVAL);
    FAILS(close_range(0, 1, 64), EINVAL);
    CHECK(is_echo(fd) && live() == 1);
    closefrom(200);
    FAILS(fcntl(209, F_GETFD), EBADF);
    CHECK(is_echo(fd));
    CHECK(close_range(lowest, ~0u, 0) == 0);
    FAILS(ioctl(fd, WORDS, 1), EBADF);
    CHECK(live() == 0);

    /* A number that was ours is anybody's afterwards. */
    CHECK(open("/dev/zero", O_RDWR) == lowest && read(lowest, &byte, 1) == 1 && close(lowest) == 0);

    /* The engine's own descriptors are out of the way, and nobody else's to close. */
    fd = open(DEVICE, O_RDWR);
    int engines = 0;
    for (int number = lowest; number < sysconf(_SC_OPEN_MAX); number++) {
        if (number == fd || fcntl(number, F_GETFD) < 0)
            continue;
        engines++;
        CHECK(number > 100);
        FAILS(close(number), EBADF);
        FAILS(dup2(0, number), EBUSY);
        CHECK(close_range(number, number, 0) == 0 && fcntl(number, F_GETFD) == FD_CLOEXEC);
    }
    CHECK(engines > 0 && open("/dev/null", O_RDWR) == fd + 1 && close_range(fd + 1, ~0u, 0) == 0);
    CHECK(pwrite(fd, "still", 5, 0) == 5 && pread(fd, &byte, 1, 0) == 1 && byte == 's');
    CHECK(close(fd) == 0 && live() == 0);
    for (int number = lowest; number < sysconf(_SC_OPEN_MAX); number++)
        FAILS(fcntl(number, F_GETFD), EBADF);

    /* They cannot be sent. */
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    fd = open(DEVICE, O_RDWR);
    for (int served = 0; served < 2; served++) {
        int both[2] = {0, served ? fd : pair[0]};
        char space[CMSG_SPACE(sizeof both)] = {0};
        struct iovec data = {"x", 1};
        struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
        struct cmsghdr *control = CMSG_FIRSTHDR(&message);
        control->cmsg_level = SOL_SOCKET;
        control->cmsg_type = SCM_RIGHTS;
        control->cmsg_len = CMSG_LEN(sizeof both);
        memcpy(CMSG_DATA(control), both, sizeof both);
        struct mmsghdr messages = {.msg_hdr = message};
        if (served) {
            FAILS(sendmsg(pair[0], &message, 0), EINVAL);
            FAILS(sendmmsg(pair[0], &messages, 1, 0), EINVAL);
        } else {
            CHECK(sendmsg(pair[0], &message, 0) == 1);
            CHECK(sendmmsg(pair[0], &messages, 1, 0) == 1);
        }
    }
    FAILS(sendmsg(pair[0], (void *)8, 0), EFAULT);
    struct msghdr nothing = {.msg_control = (void *)8, .msg_controllen = 64};
    FAILS(sendmsg(pair[0], &nothing, 0), EFAULT);
    return 0;
}
