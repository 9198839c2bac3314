/* A program that has nothing to do with our nodes: what it does between two calls of getppid must reach the kernel as it is. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SHOW(call) (errno = 0, printf("%s: %ld %d\n", #call, (long)(call), errno))

static void on_signal(int signal) {
    (void)signal;
}

int main(void) {
    setvbuf(stdout, malloc(65536), _IOFBF, 65536);
    char in[64] = "", path[PATH_MAX];
    struct stat found;
    struct iovec piece = {in, 8};
    int pipes[2];

    getppid();
    int fd = open("/etc/passwd", O_RDONLY);
    SHOW(fd);
    SHOW(read(fd, in, 8));
    SHOW(pread(fd, in, 8, 2));
    SHOW(readv(fd, &piece, 1));
    SHOW(preadv(fd, &piece, 1, 3));
    SHOW(lseek(fd, 5, SEEK_SET));
    SHOW(fstat(fd, &found));
    SHOW(found.st_mode);
    SHOW(dup(fd));
    SHOW(dup2(fd, 30));
    SHOW(dup3(fd, 31, O_CLOEXEC));
    SHOW(fcntl(31, F_GETFD));
    SHOW(fcntl(fd, F_DUPFD_CLOEXEC, 40));
    SHOW(ioctl(fd, FIONREAD, in));
    SHOW(ioctl(fd, TCGETS, in));
    SHOW(close(31));
    SHOW(close(31));
    SHOW(close_range(30, 50, 0));
    SHOW(write(fd, "x", 1));
    SHOW(stat("/etc/passwd", &found));
    SHOW(lstat("/nothing", &found));
    SHOW(fstatat(AT_FDCWD, "/etc", &found, 0));
    SHOW(access("/etc/passwd", R_OK));
    SHOW(access("/etc/shadow-of-nothing", R_OK));
    SHOW(faccessat(AT_FDCWD, "/etc", X_OK, AT_EACCESS));
    SHOW(readlink("/proc/self/exe", path, sizeof path) > 0);
    SHOW(open("/nothing", O_RDONLY));
    SHOW(open("/nothing/x", O_RDONLY));
    SHOW(open((char *)1, O_RDONLY));
    SHOW(openat(-1, "x", O_RDONLY));
    SHOW(open("/dev/null", O_RDWR | O_CLOEXEC));
    SHOW(stat("/dev/zero", &found));
    SHOW(access("/sys/class", F_OK));
    SHOW(chdir("/usr"));
    SHOW(access("lib", F_OK));
    SHOW(open("share", O_RDONLY | O_DIRECTORY));
    SHOW(mmap((void *)0x10000000, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    SHOW(mmap((void *)0x10000000, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    SHOW(mremap((void *)0x10001000, 4096, 8192, 0));
    SHOW(munmap((void *)0x10000000, 12288));
    SHOW(munmap((void *)1, 4096));
    SHOW(pipe(pipes));
    SHOW(write(pipes[1], "hello", 5));
    SHOW(read(pipes[0], in, 8));
    SHOW(writev(pipes[1], &piece, 1));
    SHOW(signal(SIGUSR1, on_signal) == SIG_DFL);
    SHOW(raise(SIGUSR1));
    SHOW(syscall(SYS_gettid) == getpid());
    SHOW(umask(022));
    DIR *stream = opendir("/usr");
    int entries = 0;
    while (readdir(stream))
        entries++;
    SHOW(entries > 4);
    SHOW(closedir(stream));
    SHOW(socketpair(AF_UNIX, SOCK_STREAM, 0, pipes));
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    SHOW(sendmsg(pipes[0], &message, 0));
    getppid();
    return 0;
}
