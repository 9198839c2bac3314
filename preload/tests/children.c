/* fork, vfork, posix_spawn, exec: whose descriptors are whose. Called again by itself with a number: is that served? */
#include "check.h"
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static int ended(pid_t child) {
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

int main(int count, char **arguments) {
    if (count > 1) {
        int fd = atoi(arguments[1]);
        /* Gone, whatever its flag was; and served anew here as well. */
        FAILS(fcntl(fd, F_GETFD), EBADF);
        int again = open(DEVICE, O_RDWR);
        return is_echo(again) ? 42 : 1;
    }
    int fd = open(DEVICE, O_RDWR);
    CHECK(fd >= 0 && fcntl(fd, F_GETFD) == 0);
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    char *again[] = {arguments[0], number, NULL};

    pid_t child = fork();
    if (!child) {
        if (!is_echo(fd) || live() != 1 || close(fd) != 0)
            _exit(1);
        fd = open(DEVICE, O_RDWR);
        _exit(fd >= 0 && is_echo(fd) && live() == 1 ? 7 : 2);
    }
    CHECK(ended(child) == 7 && is_echo(fd) && live() == 1);

    /* A child of vfork has descriptors of its own and our memory. */
    child = vfork();
    if (!child) {
        int fine = is_echo(fd) && dup2(fd, 50) == 50 && close(fd) == 0 && close_range(3, 90, 0) == 0;
        fine = fine && open(DEVICE, O_RDWR) == -1 && errno == EAGAIN;
        _exit(fine ? 7 : 1);
    }
    CHECK(ended(child) == 7 && is_echo(fd) && live() == 1);
    FAILS(fcntl(50, F_GETFD), EBADF);

    child = vfork();
    if (!child) {
        close(fd);
        execv("/proc/self/exe", again);
        _exit(1);
    }
    CHECK(ended(child) == 42 && is_echo(fd));
    child = fork();
    if (!child) {
        execv("/proc/self/exe", again);
        _exit(1);
    }
    CHECK(ended(child) == 42 && is_echo(fd));
    /* An exec that fails changes nothing. */
    char *nothing[] = {"nothing", NULL};
    FAILS(execv("/nothing", nothing), ENOENT);
    CHECK(is_echo(fd) && fcntl(fd, F_GETFD) == 0);

    posix_spawn_file_actions_t actions;
    CHECK(posix_spawn_file_actions_init(&actions) == 0);
    CHECK(posix_spawn_file_actions_addclose(&actions, fd) == 0);
    CHECK(posix_spawn(&child, "/proc/self/exe", &actions, NULL, again, environ) == 0);
    CHECK(ended(child) == 42 && is_echo(fd));
    CHECK(system("test ! -e /dev/nothing") == 0 && is_echo(fd));
    CHECK(system("test -c /dev/iommu && test -c /dev/vfio/vfio && test ! -c /dev/vfio/nothing") == 0);
    CHECK(close(fd) == 0 && live() == 0);
    return 0;
}
