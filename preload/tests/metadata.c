/* What is said of the nodes and of what sysfs has about them. */
#include "check.h"
#include <dlfcn.h>
#include <limits.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

static void is_node(const struct stat *found, unsigned minor_number, unsigned mode) {
    CHECK(found->st_mode == (S_IFCHR | mode));
    CHECK(found->st_uid == 0 && found->st_gid == 0 && found->st_nlink == 1 && found->st_size == 0);
    CHECK(found->st_rdev == makedev(511, minor_number));
    struct stat dev;
    CHECK(stat("/dev", &dev) == 0 && dev.st_dev == found->st_dev);
}

int main(void) {
    struct stat found;
    memset(&found, 0xff, sizeof found);
    CHECK(stat(IOMMU, &found) == 0);
    is_node(&found, 0, 0600);
    ino_t inode = found.st_ino;
    memset(&found, 0xff, sizeof found);
    CHECK(lstat(CONTAINER, &found) == 0 && found.st_ino != inode);
    is_node(&found, 1, 0666);
    CHECK(fstatat(AT_FDCWD, GROUP, &found, 0) == 0);
    is_node(&found, 2, 0600);
    CHECK(fstatat(-1, DEVICE, &found, AT_SYMLINK_NOFOLLOW) == 0);
    is_node(&found, 3, 0600);
    struct stat64 large;
    CHECK(stat64(IOMMU, &large) == 0 && large.st_rdev == makedev(511, 0));
    CHECK(lstat64(IOMMU, &large) == 0 && large.st_rdev == makedev(511, 0));
    CHECK(fstatat64(AT_FDCWD, IOMMU, &large, 0) == 0 && large.st_rdev == makedev(511, 0));

    int fd = open(DEVICE, O_RDWR);
    CHECK(fd >= 0 && fstat(fd, &found) == 0);
    is_node(&found, 3, 0600);
    CHECK(fstat64(fd, &large) == 0 && large.st_rdev == makedev(511, 3));
    CHECK(fstatat(fd, "", &found, AT_EMPTY_PATH) == 0);
    is_node(&found, 3, 0600);
    struct statx much;
    memset(&much, 0xff, sizeof much);
    CHECK(statx(AT_FDCWD, IOMMU, 0, STATX_BASIC_STATS, &much) == 0);
    CHECK(much.stx_mode == (S_IFCHR | 0600) && much.stx_rdev_major == 511 && much.stx_rdev_minor == 0);
    CHECK(much.stx_ino == inode && much.stx_mask == STATX_BASIC_STATS);
    CHECK(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &much) == 0 && much.stx_rdev_minor == 3);

    /* The names of older C libraries. */
    int (*xstat)(int, const char *, struct stat *) = dlsym(RTLD_DEFAULT, "__xstat");
    int (*lxstat)(int, const char *, struct stat *) = dlsym(RTLD_DEFAULT, "__lxstat");
    int (*fxstat)(int, int, struct stat *) = dlsym(RTLD_DEFAULT, "__fxstat");
    int (*fxstatat)(int, int, const char *, struct stat *, int) = dlsym(RTLD_DEFAULT, "__fxstatat");
    CHECK(xstat && lxstat && fxstat && fxstatat);
    memset(&found, 0, sizeof found);
    CHECK(xstat(1, IOMMU, &found) == 0);
    is_node(&found, 0, 0600);
    CHECK(lxstat(1, CONTAINER, &found) == 0);
    is_node(&found, 1, 0666);
    CHECK(fxstat(1, fd, &found) == 0);
    is_node(&found, 3, 0600);
    CHECK(fxstatat(1, AT_FDCWD, GROUP, &found, 0) == 0);
    is_node(&found, 2, 0600);
    CHECK(xstat(1, "/dev/null", &found) == 0 && found.st_rdev == makedev(1, 3));

    FAILS(stat("/dev/vfio/nothing", &found), ENOENT);
    FAILS(stat(IOMMU "/", &found), ENOTDIR);
    FAILS(stat(IOMMU "/x", &found), ENOTDIR);
    CHECK(stat("/dev/vfio", &found) == 0 && S_ISDIR(found.st_mode));
    CHECK(stat("/dev/vfio/devices/", &found) == 0 && S_ISDIR(found.st_mode));

    /* Who may. */
    CHECK(access(IOMMU, F_OK) == 0 && access(IOMMU, R_OK | W_OK) == 0);
    FAILS(access(IOMMU, X_OK), EACCES);
    FAILS(access("/dev/vfio/nothing", F_OK), ENOENT);
    CHECK(faccessat(AT_FDCWD, GROUP, R_OK, 0) == 0 && faccessat(AT_FDCWD, GROUP, R_OK, AT_EACCESS) == 0);
    CHECK(euidaccess(DEVICE, W_OK) == 0 && eaccess(DEVICE, W_OK) == 0);
    CHECK(access("/dev/vfio", X_OK) == 0);
    FAILS(access("/sys/class/vfio-dev/noiommu-vfio977/dev", X_OK), EACCES);

    /* Links, ours and the kernel's to ours. */
    char text[PATH_MAX], way[PATH_MAX + 32];
    const char *class = "/sys/class/vfio-dev/noiommu-vfio977";
    CHECK(lstat(class, &found) == 0 && S_ISLNK(found.st_mode));
    ssize_t length = readlink(class, text, sizeof text);
    CHECK(length == found.st_size && !strncmp(text, "../../devices/", 14));
    CHECK(readlink(class, text, 5) == 5 && !strncmp(text, "../..", 5));
    FAILS(readlink(IOMMU, text, sizeof text), EINVAL);
    FAILS(readlink(class, text, 0), EINVAL);
    CHECK(stat(class, &found) == 0 && S_ISDIR(found.st_mode));
    char *real = realpath(class, NULL);
    CHECK(real && strstr(real, "/vfio-dev/noiommu-vfio977") && !strncmp(real, "/sys/devices/", 13));
    CHECK(realpath(class, text) == text && !strcmp(text, real));
    free(real);
    real = canonicalize_file_name("/dev/vfio/devices/../../iommu");
    CHECK(real && !strcmp(real, IOMMU));
    free(real);
    CHECK(!realpath("/dev/vfio/nothing", text) && errno == ENOENT);
    /* Through our link back into what is the kernel's. */
    snprintf(way, sizeof way, "%s/device/uevent", class);
    CHECK(stat(way, &found) == 0 && S_ISREG(found.st_mode));
    snprintf(way, sizeof way, "%s/dev", class);
    CHECK(stat(way, &found) == 0 && S_ISREG(found.st_mode) && (found.st_mode & 0777) == 0444);
    /* The group of the device, as programs look for it. */
    snprintf(way, sizeof way, "%s/device/iommu_group", class);
    CHECK(lstat(way, &found) == 0 && S_ISLNK(found.st_mode));
    CHECK(realpath(way, text) && !strncmp(text, "/sys/kernel/iommu_groups/", 25));
    CHECK(stat("/sys/class/vfio/noiommu-977/dev", &found) == 0);
    CHECK(stat("/sys/dev/char/511:3/uevent", &found) == 0);

    /* What a descriptor is open on. */
    snprintf(way, sizeof way, "/proc/self/fd/%d", fd);
    length = readlink(way, text, sizeof text);
    CHECK(length == sizeof DEVICE - 1 && !memcmp(text, DEVICE, length));
    CHECK(stat(way, &found) == 0);
    is_node(&found, 3, 0600);
    CHECK(lstat(way, &found) == 0 && S_ISLNK(found.st_mode));

    /* Not to be changed, and above all not the file behind it. */
    FAILS(fchmod(fd, 0777), EROFS);
    FAILS(fchown(fd, 1, 1), EROFS);
    FAILS(futimens(fd, NULL), EROFS);
    FAILS(chmod(DEVICE, 0777), EROFS);
    FAILS(chown(DEVICE, 1, 1), EROFS);
    FAILS(lchown(DEVICE, 1, 1), EROFS);
    FAILS(fchmodat(AT_FDCWD, DEVICE, 0777, 0), EROFS);
    FAILS(fchownat(fd, "", 1, 1, AT_EMPTY_PATH), EROFS);
    FAILS(utimensat(AT_FDCWD, DEVICE, NULL, 0), EROFS);
    FAILS(chmod(way, 0777), EROFS);
    FAILS(chown(way, 1, 1), EROFS);
    int dir = open("/dev/vfio", O_RDONLY);
    FAILS(mkdirat(dir, "x", 0777), ENOENT);
    FAILS(unlinkat(dir, "vfio", 0), ENOENT);
    CHECK(close(dir) == 0);
    CHECK(stat("/dev/null", &found) == 0 && (found.st_mode & 0777) == 0666 && found.st_uid == 0);
    FAILS(getxattr(IOMMU, "user.x", text, sizeof text), ENODATA);
    FAILS(lgetxattr(IOMMU, "user.x", text, sizeof text), ENODATA);
    CHECK(listxattr(IOMMU, text, sizeof text) == 0 && llistxattr(IOMMU, text, sizeof text) == 0);

    /* Others' files are others'. */
    CHECK(stat("/dev/null", &found) == 0 && found.st_rdev == makedev(1, 3));
    CHECK(stat("/", &found) == 0 && S_ISDIR(found.st_mode));
    CHECK(access("/dev/null", W_OK) == 0);
    CHECK(close(fd) == 0);
    FAILS(fstat(fd, &found), EBADF);

    /* A file that another gave has no node. */
    fd = open(IOMMU, O_RDWR);
    int given = ioctl(fd, INSTALL, 0);
    CHECK(given >= 0 && fstat(given, &found) == 0 && found.st_mode == 0600 && found.st_rdev == 0);
    return 0;
}
