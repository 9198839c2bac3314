/* Calls by their number, through `syscall`. */
#include "check.h"
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

int main(void) {
    int fd = syscall(SYS_openat, AT_FDCWD, DEVICE, O_RDWR, 0);
    CHECK(fd >= 0 && is_echo(fd) && syscall(SYS_ioctl, fd, WORDS, 0x77) == 0x77);
    FAILS(syscall(SYS_ioctl, fd, REVERSE, NULL), EFAULT);
    char in[8] = "number";
    CHECK(syscall(SYS_pwrite64, fd, in, 6, 10) == 6 && syscall(SYS_pread64, fd, in + 1, 5, 10) == 5 && in[1] == 'n');
    CHECK(syscall(SYS_write, fd, "w", 1) == 1 && syscall(SYS_read, fd, in, 1) == 1);
    struct iovec piece = {in, 2};
    CHECK(syscall(SYS_readv, fd, &piece, 1) == 2 && syscall(SYS_writev, fd, &piece, 1) == 2);
    FAILS(syscall(SYS_lseek, fd, 0, SEEK_SET), ESPIPE);
    struct stat found;
    CHECK(syscall(SYS_fstat, fd, &found) == 0 && S_ISCHR(found.st_mode));
    CHECK(syscall(SYS_newfstatat, AT_FDCWD, IOMMU, &found, 0) == 0 && S_ISCHR(found.st_mode));
    struct statx much;
    CHECK(syscall(SYS_statx, AT_FDCWD, IOMMU, 0, STATX_BASIC_STATS, &much) == 0 && S_ISCHR(much.stx_mode));
    CHECK(syscall(SYS_faccessat, AT_FDCWD, IOMMU, R_OK) == 0);
#ifdef SYS_stat
    CHECK(syscall(SYS_stat, IOMMU, &found) == 0 && syscall(SYS_lstat, IOMMU, &found) == 0 && S_ISCHR(found.st_mode));
    CHECK(syscall(SYS_access, IOMMU, W_OK) == 0);
#endif
    char text[256];
    CHECK(syscall(SYS_readlinkat, AT_FDCWD, "/sys/class/vfio-dev/noiommu-vfio977", text, sizeof text) > 0);
    char *memory = (char *)syscall(SYS_mmap, NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED && !memcmp(memory + 10, "number", 6));
    int copy = syscall(SYS_dup, fd);
    CHECK(is_echo(copy) && syscall(SYS_fcntl, copy, F_GETFD) == 0);
    CHECK(syscall(SYS_dup3, fd, 60, O_CLOEXEC) == 60 && is_echo(60) && syscall(SYS_close_range, 60, 60, 0) == 0);
#ifdef SYS_open
    CHECK(syscall(SYS_dup2, fd, 61) == 61 && is_echo(61) && syscall(SYS_close, 61) == 0);
    int other = syscall(SYS_open, IOMMU, O_RDWR);
    CHECK(is_echo(other) && syscall(SYS_close, other) == 0);
#endif
    struct open_how how = {.flags = O_RDWR | O_CLOEXEC};
    int structured = syscall(SYS_openat2, AT_FDCWD, IOMMU, &how, sizeof how);
    CHECK(is_echo(structured) && fcntl(structured, F_GETFD) == FD_CLOEXEC && close(structured) == 0);
    structured = syscall(SYS_openat2, AT_FDCWD, "/dev/null", &how, sizeof how);
    CHECK(structured >= 0 && close(structured) == 0);
    FAILS(syscall(SYS_openat2, AT_FDCWD, IOMMU, NULL, sizeof how), EFAULT);
    CHECK(syscall(SYS_close, fd) == 0 && syscall(SYS_close, copy) == 0 && live() == 1);
    CHECK(syscall(SYS_munmap, memory, 4096) == 0 && live() == 0);
    CHECK(syscall(SYS_getpid) == getpid());
    FAILS(syscall(100000), ENOSYS);
    return 0;
}
