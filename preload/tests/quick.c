/* GET_PA is answered without a system call where nothing stands against it, and whatever a thread does to its signal mask or its
   privileges, a bad address is EFAULT and a privilege that is gone is missed. */
#include "check.h"
#include <linux/capability.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>

struct get_pa {
    uint32_t size, flags, ioas_id, reserved;
    uint64_t iova, length, out_phys;
};

/* What the answer tells of the way. */
enum { BY_IOCTL = 1, QUICKLY = 2 };

#define IOVA 0x5000

static int fd;
static char *none, *edge;
static const struct get_pa constant = {sizeof constant, 0, 7, 0, IOVA, 4096, 0};

/* The C library's, whose header no distribution has without libcap. */
int capset(cap_user_header_t header, const cap_user_data_t data);

static int way_of(struct get_pa call) {
    errno = 12345;
    CHECK(ioctl(fd, GET_PA, &call) == 0 && errno == 12345);
    CHECK(call.ioas_id == 7 ? call.size >= 40 && call.iova == IOVA && call.length == 4096 : 1);
    return call.out_phys - IOVA;
}

static int way(void) {
    return way_of(constant);
}

/* No address where nothing is, or only a part; and none to write to. */
static void bad_addresses(void) {
    void *bad[] = {NULL, (void *)1, none, edge - 8, edge - 39, (void *)-1, (void *)(1ul << 63), (void *)0x7ffffffff000};
    for (size_t number = 0; number < sizeof bad / sizeof *bad; number++)
        FAILS(ioctl(fd, GET_PA, bad[number]), EFAULT);
    FAILS(ioctl(fd, GET_PA, &constant), EFAULT);
}

/* With SIGSEGV and SIGBUS blocked, however that came. */
static void is_blocked(void) {
    sigset_t now;
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && (sigismember(&now, SIGSEGV) || sigismember(&now, SIGBUS)));
    bad_addresses();
    CHECK(way() == BY_IOCTL);
    bad_addresses();
}

static sigset_t all, before;

/* And without. */
static void is_unblocked(void) {
    CHECK(sigprocmask(SIG_SETMASK, &before, NULL) == 0);
    CHECK(way() == QUICKLY);
    bad_addresses();
    CHECK(way() == QUICKLY);
}

static sigjmp_buf back;

static void leave(int signal) {
    (void)signal;
    _longjmp(back, 1);
}

static ucontext_t here, there;
static char stack[65536];

static void elsewhere(void) {
    is_blocked();
    CHECK(swapcontext(&there, &here) == 0);
}

static void *thread(void *argument) {
    (void)argument;
    is_blocked();
    CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
    CHECK(way() == QUICKLY);
    bad_addresses();
    return NULL;
}

static void masks(void) {
    is_unblocked();
    CHECK(sigprocmask(SIG_BLOCK, &all, NULL) == 0);
    is_blocked();
    is_unblocked();
    CHECK(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
    is_blocked();
    is_unblocked();
    uint64_t set = 1ull << (SIGSEGV - 1);
    CHECK(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, NULL, sizeof set) == 0);
    is_blocked();
    is_unblocked();
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    CHECK(sighold(SIGSEGV) == 0);
    is_blocked();
    is_unblocked();
    CHECK(sigset(SIGBUS, SIG_HOLD) != SIG_ERR);
    sigset_t now;
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGBUS));
    CHECK(way() == BY_IOCTL);
    is_unblocked();
    sigblock(sigmask(SIGSEGV));
    is_blocked();
    is_unblocked();
    sigsetmask(sigmask(SIGSEGV) | sigmask(SIGBUS));
    is_blocked();

    /* Back to where it was blocked. */
    if (!sigsetjmp(back, 1)) {
        is_unblocked();
        siglongjmp(back, 1);
    }
    is_blocked();
    is_unblocked();

    /* Out of a handler, with the mask of the handler. */
    struct sigaction action = {.sa_handler = leave, .sa_mask = all};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    if (!_setjmp(back))
        raise(SIGUSR1);
    is_blocked();
    is_unblocked();
    CHECK(signal(SIGSEGV, leave) != SIG_ERR);
    if (!_setjmp(back))
        *(volatile char *)none = 1;
    is_blocked();
    is_unblocked();
    CHECK(signal(SIGSEGV, SIG_DFL) == leave);

    /* To another context and back. */
    CHECK(getcontext(&there) == 0);
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = sizeof stack;
    there.uc_link = NULL;
    there.uc_sigmask = all;
    makecontext(&there, elsewhere, 0);
    CHECK(swapcontext(&here, &there) == 0);
    CHECK(way() == QUICKLY);
    bad_addresses();
    is_unblocked();

    /* A thread that begins with everything blocked. */
    pthread_t other;
    CHECK(sigprocmask(SIG_BLOCK, &all, NULL) == 0 && pthread_create(&other, NULL, thread, NULL) == 0);
    is_blocked();
    CHECK(pthread_join(other, NULL) == 0);
    is_unblocked();
}

static struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};

/* CAP_SYS_RAWIO in the effective set, or not. */
static int raw_io(int by_number, int wanted) {
    struct __user_cap_data_struct data[2];
    CHECK(syscall(SYS_capget, &header, data) == 0);
    if (wanted)
        data[0].effective |= 1u << CAP_SYS_RAWIO;
    else
        data[0].effective &= ~(1u << CAP_SYS_RAWIO);
    return by_number ? syscall(SYS_capset, &header, data) : capset(&header, data);
}

static void *waits_for_a_user(void *argument) {
    pthread_barrier_t *barrier = argument;
    CHECK(way() == QUICKLY);
    pthread_barrier_wait(barrier);
    pthread_barrier_wait(barrier);
    /* The main thread has changed the user of all. */
    CHECK(way() == BY_IOCTL);
    return NULL;
}

static void privileges(void) {
    for (int by_number = 0; by_number < 2; by_number++) {
        CHECK(way() == QUICKLY && raw_io(by_number, 0) == 0 && way() == BY_IOCTL && way() == BY_IOCTL);
        CHECK(raw_io(by_number, 1) == 0 && way() == QUICKLY);
    }
    for (int call = 0; call < 6; call++) {
        pid_t child = fork();
        if (!child) {
            pthread_barrier_t barrier;
            pthread_t other;
            CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0);
            CHECK(pthread_create(&other, NULL, waits_for_a_user, &barrier) == 0);
            CHECK(way() == QUICKLY);
            pthread_barrier_wait(&barrier);
            int answer = call == 0   ? setuid(23456)
                         : call == 1 ? seteuid(23456)
                         : call == 2 ? setreuid(23456, 23456)
                         : call == 3 ? setresuid(23456, 23456, 23456)
                         : call == 4 ? setresuid(-1, 23456, -1)
                                     : setreuid(-1, 23456);
            CHECK(answer == 0 && way() == BY_IOCTL);
            pthread_barrier_wait(&barrier);
            CHECK(pthread_join(other, NULL) == 0);
            if (call == 1)
                CHECK(seteuid(0) == 0 && way() == QUICKLY);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    int number[] = {SYS_setuid, SYS_setreuid, SYS_setresuid};
    for (size_t call = 0; call < sizeof number / sizeof *number; call++) {
        pid_t child = fork();
        if (!child) {
            CHECK(way() == QUICKLY && syscall(number[call], 23456, 23456, 23456) == 0 && way() == BY_IOCTL);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
}

int main(void) {
    none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(munmap(edge + 4096, 4096) == 0);
    edge += 4096;
    CHECK(sigprocmask(SIG_BLOCK, NULL, &before) == 0 && sigfillset(&all) == 0);
    fd = open(IOMMU, O_RDWR);
    CHECK(fd >= 0);

    struct __user_cap_data_struct data[2];
    CHECK(syscall(SYS_capget, &header, data) == 0);
    if (!(data[0].effective & 1u << CAP_SYS_RAWIO)) {
        /* Nobody is answered quickly, and everybody is answered. */
        CHECK(way() == BY_IOCTL);
        bad_addresses();
        puts("not privileged: the long way only");
        return 0;
    }

    /* Only what is plain. */
    CHECK(way() == QUICKLY);
    struct get_pa odd[] = {constant, constant, constant, constant, constant};
    odd[0].size = 48;
    odd[1].size = 0;
    odd[2].flags = 1;
    odd[3].reserved = 1;
    odd[4].ioas_id = 8;
    for (size_t number = 0; number < sizeof odd / sizeof *odd; number++) {
        struct get_pa call = odd[number];
        CHECK(ioctl(fd, GET_PA, &call) == 0 && call.out_phys - IOVA == BY_IOCTL);
    }
    CHECK(syscall(SYS_ioctl, fd, GET_PA, &odd[4]) == 0);
    bad_addresses();
    CHECK(way() == QUICKLY);
    /* The whole structure up to the very end of memory. */
    memcpy(edge - sizeof constant, &constant, sizeof constant);
    CHECK(ioctl(fd, GET_PA, edge - sizeof constant) == 0);
    memcpy(&odd[0], edge - sizeof constant, sizeof constant);
    CHECK(odd[0].out_phys - IOVA == QUICKLY);

    masks();
    privileges();
    pid_t child = fork();
    if (!child) {
        CHECK(way() == QUICKLY);
        masks();
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(close(fd) == 0 && live() == 0);
    return 0;
}
