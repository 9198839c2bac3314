/* Addresses that are none: EFAULT from every call, and never a crash; the program's own faults are its own. */
#include "check.h"
#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

static char *none, *edge;
static sigjmp_buf back;
static volatile int handled;
static volatile void *where;

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)context;
    handled = signal;
    where = info->si_addr;
    siglongjmp(back, 1);
}

static void on_signal(int signal) {
    handled = signal;
    siglongjmp(back, 1);
}

/* The program's own fault at `none`: the signal that its handler saw. */
static int fault(void) {
    handled = 0;
    if (!sigsetjmp(back, 1))
        *(volatile char *)none = 1;
    return handled;
}

static void bad_pointers(int fd) {
    char in[8];
    void *bad[] = {NULL, (void *)1, none, (void *)-1, (void *)(1ul << 63), (void *)0x7ffffffff000, (void *)0x800000000000};
    for (size_t number = 0; number < sizeof bad / sizeof *bad; number++) {
        void *at = bad[number];
        FAILS(ioctl(fd, REVERSE, at), EFAULT);
        struct reverse turn = {(uintptr_t)at, 8, 1};
        FAILS(ioctl(fd, REVERSE, &turn), EFAULT);
        FAILS(read(fd, at, 8), EFAULT);
        FAILS(write(fd, at, 8), EFAULT);
        FAILS(pread(fd, at, 8, 0), EFAULT);
        FAILS(pwrite(fd, at, 8, 0), EFAULT);
        struct iovec pieces = {at, 8};
        FAILS(readv(fd, &pieces, 1), EFAULT);
        FAILS(pwritev(fd, &pieces, 1, 0), EFAULT);
        FAILS(readv(fd, at, 1), EFAULT);
        FAILS(preadv(fd, at, 1, 0), EFAULT);
        FAILS(fstat(fd, at), EFAULT);
        FAILS(stat(IOMMU, at), EFAULT);
        FAILS(fstatat(AT_FDCWD, IOMMU, at, 0), EFAULT);
        FAILS(statx(AT_FDCWD, IOMMU, 0, STATX_BASIC_STATS, at), EFAULT);
        FAILS(readlink("/sys/class/vfio-dev/noiommu-vfio977", at, 64), EFAULT);
        FAILS(open(at, O_RDWR), EFAULT);
        FAILS(openat(3, at, O_RDWR), EFAULT);
        FAILS(creat(at, 0600), EFAULT);
        FAILS(access(at, F_OK), EFAULT);
        FAILS(stat(at, (struct stat *)in), EFAULT);
        FAILS(lstat(at, (struct stat *)in), EFAULT);
        FAILS(readlink(at, in, sizeof in), EFAULT);
        FAILS(sendmsg(0x7fff, at, 0), EBADF);
    }
    /* Half of it there. */
    memcpy(edge - 5, "/dev/", 5);
    FAILS(open(edge - 5, O_RDWR), EFAULT);
    strcpy(edge - sizeof IOMMU, IOMMU);
    int again = open(edge - sizeof IOMMU, O_RDWR);
    CHECK(again >= 0 && is_echo(again) && close(again) == 0);
    FAILS(ioctl(fd, REVERSE, edge - 8), EFAULT);
    FAILS(pread(fd, edge - 4, 8, 0), EFAULT);
    CHECK(pread(fd, edge - 4, 4, 0) == 4);
}

static int sent(int signal, int code) {
    siginfo_t info = {.si_signo = signal, .si_code = code};
    (void)info;
    return raise(signal);
}

int main(void) {
    none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(munmap(edge + 4096, 4096) == 0);
    edge += 4096;
    int fd = open(DEVICE, O_RDWR);
    CHECK(fd >= 0);
    bad_pointers(fd);

    /* Read-only memory, a file that ends before its mapping (SIGBUS). */
    const char *constant = "constant";
    struct reverse turn = {(uintptr_t)constant, 8, 1};
    FAILS(ioctl(fd, REVERSE, &turn), EFAULT);
    FAILS(pread(fd, (void *)constant, 8, 0), EFAULT);
    int empty = memfd_create("empty", 0);
    char *behind = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, empty, 0);
    FAILS(ioctl(fd, REVERSE, behind), EFAULT);
    FAILS(pread(fd, behind, 8, 0), EFAULT);

    /* With the signals blocked, too; and the mask is as it was. */
    sigset_t blocked, before, after;
    sigfillset(&blocked);
    CHECK(sigprocmask(SIG_BLOCK, &blocked, &before) == 0);
    FAILS(ioctl(fd, REVERSE, none), EFAULT);
    turn.address = (uintptr_t)none;
    FAILS(ioctl(fd, REVERSE, &turn), EFAULT);
    FAILS(pread(fd, behind, 8, 0), EFAULT);
    FAILS(fstat(fd, (struct stat *)none), EFAULT);
    CHECK(sigprocmask(SIG_SETMASK, &before, &after) == 0);
    for (int signal = 1; signal < 32; signal++)
        CHECK(sigismember(&after, signal) == (signal != SIGKILL && signal != SIGSTOP));

    /* The program's handlers see their faults and none of ours. */
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESTART}, old;
    sigaddset(&action.sa_mask, SIGUSR1);
    CHECK(sigaction(SIGSEGV, &action, &old) == 0 && old.sa_handler == SIG_DFL && !(old.sa_flags & SA_SIGINFO));
    CHECK(sigaction(SIGSEGV, NULL, &old) == 0 && old.sa_sigaction == on_fault);
    CHECK((old.sa_flags & (SA_SIGINFO | SA_RESTART | SA_RESETHAND)) == (SA_SIGINFO | SA_RESTART));
    CHECK(sigismember(&old.sa_mask, SIGUSR1) && !sigismember(&old.sa_mask, SIGUSR2));
    CHECK(fault() == SIGSEGV && where == none);
    handled = 0;
    bad_pointers(fd);
    CHECK(handled == 0);
    CHECK(fault() == SIGSEGV);
    CHECK(signal(SIGSEGV, on_signal) != SIG_ERR && fault() == SIGSEGV);
    CHECK(signal(SIGSEGV, SIG_DFL) == on_signal);
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    handled = 0;
    if (!sigsetjmp(back, 1))
        *(volatile char *)behind = 1;
    CHECK(handled == SIGBUS && where == behind);
    FAILS(pread(fd, behind, 8, 0), EFAULT);

    /* Once only. */
    action.sa_flags |= SA_RESETHAND;
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGSEGV, NULL, &old) == 0 && (old.sa_flags & SA_RESETHAND));
    CHECK(fault() == SIGSEGV);
    CHECK(sigaction(SIGSEGV, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
    FAILS(ioctl(fd, REVERSE, none), EFAULT);

    /* On a stack of its own. */
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    CHECK(sigaltstack(&stack, NULL) == 0);
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0 && fault() == SIGSEGV);
    FAILS(ioctl(fd, REVERSE, none), EFAULT);

    /* Ignored: what is sent, not what happens. Default: the end, by the same signal. */
    CHECK(signal(SIGSEGV, SIG_IGN) != SIG_ERR && sent(SIGSEGV, SI_USER) == 0);
    for (int way = 0; way < 3; way++) {
        pid_t child = fork();
        if (!child) {
            if (way)
                signal(SIGSEGV, SIG_DFL);
            if (way == 2)
                raise(SIGSEGV);
            *(volatile char *)none = 1;
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    }

    /* Cheaply: a copy costs less than half of a system call that does the same. */
    uint64_t word = 1;
    double best = 1e9;
    for (int round = 0; round < 5; round++) {
        double ratio = (double)ioctl(fd, COPY_TIME, &word) / ioctl(fd, SYSTEM_TIME, &word);
        best = ratio < best ? ratio : best;
    }
    printf("a copy takes %.3f of process_vm_readv\n", best);
    CHECK(best < 0.5);
    FAILS(ioctl(fd, SYSTEM_TIME, none), EFAULT);
    /* And a whole call that reads one word costs less than the system call alone. */
    struct timespec begin, end;
    double whole = 1e9;
    for (int round = 0; round < 5; round++) {
        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (int call = 0; call < 100000; call++)
            ioctl(fd, WORD, &word);
        clock_gettime(CLOCK_MONOTONIC, &end);
        double time = (end.tv_sec - begin.tv_sec) * 1e9 + end.tv_nsec - begin.tv_nsec;
        double ratio = time / ioctl(fd, SYSTEM_TIME, &word);
        whole = ratio < whole ? ratio : whole;
    }
    printf("a call with one copy takes %.3f of process_vm_readv\n", whole);
    CHECK(ioctl(fd, WORD, &word) == 1 && whole < 1);
    CHECK(close(fd) == 0 && live() == 0);
    return 0;
}
