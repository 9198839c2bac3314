/* Opening: every function, every kind of path, the flags. */
#include "check.h"
#include <limits.h>

extern int __open_2(const char *, int);
extern int __open64_2(const char *, int);
extern int __openat_2(int, const char *, int);
extern int __openat64_2(int, const char *, int);

static void is_served(int fd) {
    CHECK(fd >= 0);
    CHECK(is_echo(fd));
    CHECK(close(fd) == 0);
    FAILS(ioctl(fd, WORDS, 1), EBADF);
}

int main(void) {
    int lowest = dup(0);
    CHECK(close(lowest) == 0);

    is_served(open(IOMMU, O_RDWR));
    is_served(open64(IOMMU, O_RDWR));
    is_served(openat(AT_FDCWD, CONTAINER, O_RDWR));
    is_served(openat64(-100, GROUP, O_RDWR));
    is_served(openat(-1, DEVICE, O_RDWR));
    is_served(__open_2(DEVICE, O_RDONLY));
    is_served(__open64_2(DEVICE, O_RDONLY));
    is_served(__openat_2(AT_FDCWD, DEVICE, O_RDONLY));
    is_served(__openat64_2(AT_FDCWD, DEVICE, O_RDONLY));

    /* The number is the kernel's: the lowest that is free, also for what sysfs says. */
    int fd = open(IOMMU, O_RDWR);
    CHECK(fd == lowest);
    CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR);
    CHECK(fcntl(fd, F_GETFD) == 0);
    CHECK(close(fd) == 0);
    fd = open(DEVICE, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    CHECK(fd == lowest && (ioctl(fd, FLAGS, 0) & O_ACCMODE) == O_WRONLY);
    CHECK((fcntl(fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_WRONLY | O_NONBLOCK));
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    CHECK(close(fd) == 0);

    /* Flags. */
    FAILS(open(IOMMU, O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
    FAILS(open(IOMMU, O_RDONLY | O_DIRECTORY), ENOTDIR);
    FAILS(open(IOMMU "/", O_RDWR), ENOTDIR);
    FAILS(open(IOMMU "/x", O_RDWR), ENOTDIR);
    FAILS(open("/dev/iommu/../null", O_RDWR), ENOTDIR);
    FAILS(open("/dev/vfio/nothing", O_RDWR), ENOENT);
    FAILS(open("/dev/vfio/devices", O_RDWR), EISDIR);
    is_served(open(IOMMU, O_RDWR | O_CREAT, 0600));
    is_served(open(IOMMU, O_RDWR | O_TRUNC | O_NOCTTY | O_NOFOLLOW | O_SYNC));
    is_served(creat(IOMMU, 0600));
    is_served(creat64(IOMMU, 0600));
    CHECK(access("/dev/iommu", F_OK) == 0);

    /* Ways to the same place. */
    char place[] = "/tmp/noiommu-open-XXXXXX";
    CHECK(mkdtemp(place));
    CHECK(chdir(place) == 0);
    CHECK(symlink("/dev/iommu", "node") == 0);
    CHECK(symlink("node", "second") == 0);
    CHECK(symlink("/dev/vfio", "directory") == 0);
    CHECK(symlink("/dev", "real") == 0);
    is_served(open("node", O_RDWR));
    is_served(open("second", O_RDWR));
    is_served(open("./second", O_RDWR));
    is_served(open("directory/noiommu-977", O_RDWR));
    is_served(open("directory/devices/../vfio", O_RDWR));
    is_served(open("real/iommu", O_RDWR));
    is_served(open("real/vfio/vfio", O_RDWR));
    FAILS(open("node", O_RDWR | O_NOFOLLOW), ELOOP);
    FAILS(open("node/", O_RDWR), ENOTDIR);
    is_served(open("/dev/vfio/../iommu", O_RDWR));
    is_served(open("/dev//vfio/./devices//noiommu-vfio977", O_RDWR));
    is_served(open("//dev/iommu", O_RDWR));
    is_served(open("/./dev/iommu", O_RDWR | O_CREAT, 0600));
    is_served(open("/../dev/iommu", O_RDWR));
    is_served(open("../../dev/iommu", O_RDWR));
    CHECK(chdir("/dev") == 0);
    is_served(open("iommu", O_RDWR | O_CREAT, 0600));
    is_served(open("vfio/vfio", O_RDWR));
    is_served(open("../dev/./iommu", O_RDWR));
    CHECK(chdir(place) == 0);
    CHECK(unlink("node") == 0 && unlink("second") == 0 && unlink("directory") == 0 && unlink("real") == 0);
    CHECK(chdir("/") == 0 && rmdir(place) == 0);

    /* Directories by descriptor: the kernel's, and ours. */
    int dev = open("/dev", O_RDONLY | O_DIRECTORY);
    CHECK(dev >= 0);
    is_served(openat(dev, "iommu", O_RDWR));
    is_served(openat(dev, "vfio/devices/noiommu-vfio977", O_RDWR));
    int vfio = openat(dev, "vfio", O_PATH | O_DIRECTORY);
    CHECK(vfio >= 0);
    is_served(openat(vfio, "noiommu-977", O_RDWR));
    is_served(openat(vfio, "devices/noiommu-vfio977", O_RDWR));
    is_served(openat(vfio, "../iommu", O_RDWR));
    fd = openat(vfio, "../null", O_RDWR);
    CHECK(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
    FAILS(openat(vfio, "etc", O_RDONLY), ENOENT);
    FAILS(openat(vfio, "977", O_RDONLY), ENOENT);
    FAILS(ioctl(vfio, WORDS, 1), EBADF);
    FAILS(fchdir(vfio), ENOENT);
    CHECK(close(vfio) == 0 && close(dev) == 0);
    FAILS(openat(0x7fff, "iommu", O_RDWR), EBADF);

    /* By way of a descriptor. */
    fd = open(DEVICE, O_RDWR);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    is_served(open(path, O_RDWR));
    snprintf(path, sizeof path, "/dev/fd/%d", fd);
    is_served(open(path, O_RDWR));
    CHECK(close(fd) == 0);

    /* O_PATH names it and does no more. */
    fd = open(IOMMU, O_PATH);
    CHECK(fd >= 0);
    FAILS(ioctl(fd, WORDS, 1), EBADF);
    FAILS(read(fd, path, 1), EBADF);
    struct stat found;
    CHECK(fstat(fd, &found) == 0 && S_ISCHR(found.st_mode));
    CHECK(close(fd) == 0);

    /* Streams. */
    FILE *stream = fopen(IOMMU, "r+e");
    CHECK(stream && is_echo(fileno(stream)) && fcntl(fileno(stream), F_GETFD) == FD_CLOEXEC);
    fd = fileno(stream);
    CHECK(fclose(stream) == 0);
    CHECK(open("/dev/zero", O_RDONLY) == fd);
    FAILS(ioctl(fd, WORDS, 1), ENOTTY);
    CHECK(close(fd) == 0);
    errno = 0;
    CHECK(!fopen("/dev/vfio/nothing", "r") && errno == ENOENT);
    CHECK(!fopen(IOMMU, "wx") && errno == EEXIST);
    CHECK(!fopen(IOMMU, "q") && errno == EINVAL);
    stream = fopen("/sys/class/vfio-dev/noiommu-vfio977/dev", "r");
    char line[32];
    CHECK(stream && fgets(line, sizeof line, stream) && !strcmp(line, "511:3\n") && fclose(stream) == 0);
    fd = open("/sys/class/vfio-dev/noiommu-vfio977/dev", O_RDONLY);
    CHECK(fd == lowest && read(fd, line, sizeof line) == 6 && lseek(fd, 4, SEEK_SET) == 4);
    CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
    FAILS(write(fd, "x", 1), EBADF);
    CHECK(close(fd) == 0);
    FAILS(open("/sys/class/vfio-dev/noiommu-vfio977/dev", O_RDWR), EACCES);

    /* Files that one call of ours opens. */
    fd = open(DEVICE, O_RDWR);
    int other = ioctl(fd, INSTALL, 0);
    CHECK(other == fd + 1 && is_echo(other) && fcntl(other, F_GETFD) == FD_CLOEXEC);
    CHECK(ioctl(fd, GET, other) == 1);
    FAILS(ioctl(fd, GET, 0), EBADFD);
    FAILS(ioctl(fd, GET, 1000), EBADF);
    FAILS(ioctl(fd, GET, -1), EBADF);
    int node = open(IOMMU, O_PATH);
    FAILS(ioctl(fd, GET, node), EBADF);
    CHECK(close(node) == 0 && close(other) == 0);
    CHECK(ioctl(fd, REMOVE, 0) == other);
    FAILS(ioctl(other, LIVE, 0), EBADF);
    /* What the engine opens is the kernel's. */
    FAILS(ioctl(fd, REAL_OPEN, 0), ENOENT);
    CHECK(close(fd) == 0);
    CHECK(live() == 0);

    /* The limits are the kernel's. */
    CHECK((fd = open(DEVICE, O_RDWR)) >= 0);
    while (dup(fd) >= 0)
        ;
    CHECK(errno == EMFILE);
    FAILS(open(IOMMU, O_RDWR), EMFILE);
    FAILS(ioctl(fd, INSTALL, 0), EMFILE);
    FAILS(fcntl(fd, F_DUPFD_CLOEXEC, 0), EMFILE);
    closefrom(lowest);
    CHECK(live() == 0);
    return 0;
}
