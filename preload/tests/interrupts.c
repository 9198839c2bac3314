/* Signal handlers that copy and close descriptors, ours and others, while the thread that they interrupt is in the middle of
 * everything. */
#include "check.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>

static int fd, pipes[2];
static volatile sig_atomic_t handled;

static void on_alarm(int signal) {
    int before = errno;
    (void)signal;
    int copy = dup(fd);
    if (copy < 0 || fcntl(copy, F_GETFD) != 0 || dup2(copy, 400) != 400 || close(copy) != 0 || close(400) != 0)
        abort();
    char byte = 'x';
    struct stat found;
    if (write(pipes[1], &byte, 1) != 1 || read(pipes[0], &byte, 1) != 1 || fstat(fd, &found) != 0)
        abort();
    if ((copy = open("/dev/null", O_RDONLY)) < 0 || close(copy) != 0)
        abort();
    handled++;
    errno = before;
}

int main(void) {
    fd = open(DEVICE, O_RDWR);
    CHECK(fd >= 0 && pipe(pipes) == 0);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval often = {{0, 300}, {0, 300}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    char text[4096];
    struct reverse turn = {(uintptr_t)text, sizeof text, 9};
    for (int round = 0; handled < 3000 && round < 2000000; round++) {
        CHECK(ioctl(fd, REVERSE, &turn) == 9);
        int other = open(DEVICE, O_RDWR);
        CHECK(other >= 0 && is_echo(other));
        char *memory = mmap(NULL, 4096, PROT_READ, MAP_SHARED, other, 0);
        CHECK(memory != MAP_FAILED && close(other) == 0 && munmap(memory, 4096) == 0);
        CHECK(access("/dev/vfio/devices", F_OK) == 0);
        FAILS(ioctl(fd, REVERSE, 8), EFAULT);
    }
    CHECK(handled >= 3000);
    memset(&often, 0, sizeof often);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    CHECK(close(fd) == 0 && live() == 0);
    return 0;
}
