/* Threads that open, copy, use and close at once, also each other's numbers: errnos, never a crash, nothing left. */
#include "check.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { THREADS = 6, ROUNDS = 3000, FIRST = 300, NUMBERS = 8 };

static volatile int stop;

/* Its own descriptors: every answer must be the one expected. */
static void *orderly(void *unused) {
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        int fd = open(round % 2 ? IOMMU : DEVICE, O_RDWR);
        CHECK(fd >= 0 && is_echo(fd));
        int copy = dup(fd);
        CHECK(copy >= 0 && is_echo(copy));
        CHECK(close(fd) == 0);
        char text[] = "ab";
        struct reverse turn = {(uintptr_t)text, 2, 5};
        CHECK(ioctl(copy, REVERSE, &turn) == 5 && text[0] == 'b');
        if (round % 2 == 0) {
            char *memory = mmap(NULL, 4096, PROT_READ, MAP_SHARED, copy, 0);
            CHECK(memory != MAP_FAILED && close(copy) == 0 && munmap(memory, 4096) == 0);
        } else {
            CHECK(close(copy) == 0);
        }
        int real = open("/dev/zero", O_RDONLY);
        char byte = 1;
        CHECK(real >= 0 && read(real, &byte, 1) == 1 && byte == 0 && close(real) == 0);
    }
    return NULL;
}

/* The same few numbers as others: any answer that a racing close allows. */
static void *unruly(void *seed) {
    unsigned state = (unsigned)(uintptr_t)seed;
    int source = open(DEVICE, O_RDWR);
    CHECK(source >= 0);
    for (int round = 0; round < ROUNDS; round++) {
        int number = FIRST + rand_r(&state) % NUMBERS;
        switch (rand_r(&state) % 6) {
        case 0:
            CHECK(dup2(source, number) == number);
            break;
        case 1:
            CHECK(dup2(0, number) == number || errno == EBUSY);
            break;
        case 2:
            CHECK(close(number) == 0 || errno == EBADF);
            break;
        case 3:
            CHECK(is_echo(number) || errno == EBADF || errno == ENOTTY || errno == EINVAL);
            break;
        case 4:
            CHECK(close_range(number, number + 1, 0) == 0);
            break;
        default:
            CHECK(fcntl(number, F_SETFD, FD_CLOEXEC) == 0 || errno == EBADF);
        }
    }
    CHECK(close(source) == 0);
    return NULL;
}

static void *busy(void *descriptor) {
    int fd = *(int *)descriptor;
    while (!stop)
        CHECK(ioctl(fd, SLEEP, 1) == 0);
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    for (int number = 0; number < THREADS; number++)
        CHECK(pthread_create(&threads[number], NULL, orderly, NULL) == 0);
    for (int number = 0; number < THREADS; number++)
        CHECK(pthread_join(threads[number], NULL) == 0);
    CHECK(live() == 0);
    for (int number = 0; number < THREADS; number++)
        CHECK(pthread_create(&threads[number], NULL, unruly, (void *)(uintptr_t)(number + 1)) == 0);
    for (int number = 0; number < THREADS; number++)
        CHECK(pthread_join(threads[number], NULL) == 0);
    CHECK(close_range(FIRST, FIRST + NUMBERS, 0) == 0);
    CHECK(live() == 0);

    /* Closed while a call is in it: the call ends, then the file. */
    int fd = open(DEVICE, O_RDWR), watch = open(IOMMU, O_RDWR);
    CHECK(pthread_create(&threads[0], NULL, busy, &fd) == 0);
    usleep(2000);
    int copy = dup(fd);
    stop = 1;
    CHECK(close(copy) == 0 && pthread_join(threads[0], NULL) == 0 && close(fd) == 0);
    CHECK(ioctl(watch, LIVE, 0) == 1);

    /* Forks while others are inside: no lock stays behind in the child. */
    stop = 0;
    for (int number = 0; number < THREADS; number++)
        CHECK(pthread_create(&threads[number], NULL, busy, &watch) == 0);
    for (int round = 0; round < 50; round++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            alarm(20);
            int mine = open(DEVICE, O_RDWR);
            _exit(!(mine >= 0 && is_echo(mine) && is_echo(watch) && close(mine) == 0 && close(watch) == 0));
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    stop = 1;
    for (int number = 0; number < THREADS; number++)
        CHECK(pthread_join(threads[number], NULL) == 0);
    CHECK(is_echo(watch) && close(watch) == 0);
    return 0;
}
