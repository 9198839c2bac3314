/* Threads can still be cancelled where the C library lets them be. */
#include "check.h"
#include <pthread.h>

static int pipes[2];

static void *reader(void *unused) {
    char byte;
    (void)unused;
    read(pipes[0], &byte, 1);
    return NULL;
}

int main(void) {
    int fd = open(DEVICE, O_RDWR);
    CHECK(fd >= 0 && pipe(pipes) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, reader, NULL) == 0);
    usleep(10000);
    void *result;
    CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
    CHECK(is_echo(fd));
    return 0;
}
