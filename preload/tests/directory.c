/* Directories: what is listed, where the list goes on, and the functions that list for others. */
#include "check.h"
#include <dirent.h>
#include <glob.h>

static int count(DIR *stream, const char *name) {
    int found = 0;
    for (struct dirent *entry; errno = 0, (entry = readdir(stream));)
        found += !strcmp(entry->d_name, name);
    CHECK(errno == 0);
    return found;
}

static int lists(const char *path, const char *name) {
    DIR *stream = opendir(path);
    CHECK(stream);
    int found = count(stream, name);
    rewinddir(stream);
    CHECK(count(stream, name) == found);
    CHECK(closedir(stream) == 0);
    return found;
}

static int all(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

int main(void) {
    int lowest = dup(0);
    CHECK(close(lowest) == 0);
    CHECK(lists("/dev", "iommu") == 1 && lists("/dev", "vfio") == 1 && lists("/dev", "null") == 1);
    CHECK(lists("/dev/vfio", "vfio") == 1 && lists("/dev/vfio", "noiommu-977") == 1);
    CHECK(lists("/dev/vfio", "devices") == 1 && lists("/dev/vfio", ".") == 1 && lists("/dev/vfio", "null") == 0);
    CHECK(lists("/dev/vfio/devices", "noiommu-vfio977") == 1 && lists("/dev/vfio/devices", "..") == 1);
    CHECK(lists("/sys/class/vfio-dev", "noiommu-vfio977") == 1 && lists("/sys/class", "vfio-dev") == 1);
    CHECK(lists("/sys/class/vfio-dev/noiommu-vfio977", "dev") == 1);
    CHECK(lists("/sys/class/vfio-dev/noiommu-vfio977/device", "vfio-dev") == 1);
    CHECK(lists("/sys/class/vfio-dev/noiommu-vfio977/device", "iommu_group") == 1);
    CHECK(lists("/sys/class/vfio-dev/noiommu-vfio977/device", "uevent") == 1);
    CHECK(lists("/sys/class/vfio-dev/noiommu-vfio977/device/vfio-dev", "noiommu-vfio977") == 1);
    CHECK(lists("/sys/kernel/iommu_groups", "977") == 1);
    CHECK(lists("/", "iommu") == 0 && lists("/", "dev") == 1);
    CHECK(chdir("/dev") == 0 && lists(".", "iommu") == 1 && lists("./vfio", "vfio") == 1 && chdir("/") == 0);

    /* What has both is listed once, with its type. */
    DIR *stream = opendir("/dev/vfio");
    int types = 0;
    for (struct dirent *entry; (entry = readdir(stream));) {
        struct stat found;
        CHECK(fstatat(dirfd(stream), entry->d_name, &found, AT_SYMLINK_NOFOLLOW) == 0);
        CHECK(entry->d_type == (S_ISDIR(found.st_mode) ? DT_DIR : DT_CHR));
        CHECK(!strcmp(entry->d_name, "..") || entry->d_ino == found.st_ino);
        types++;
    }
    CHECK(types == 5);
    int fd = openat(dirfd(stream), "noiommu-977", O_RDWR);
    CHECK(fd >= 0 && is_echo(fd) && close(fd) == 0);
    fd = dirfd(stream);
    CHECK(closedir(stream) == 0);
    CHECK(open("/dev/null", O_RDWR) == fd);
    struct stat found;
    CHECK(fstat(fd, &found) == 0 && S_ISCHR(found.st_mode) && close(fd) == 0);

    /* Places in the list. */
    stream = opendir("/dev/vfio");
    CHECK(readdir(stream) && readdir(stream));
    long place = telldir(stream);
    CHECK(place != -1);
    struct dirent *entry = readdir(stream);
    CHECK(entry);
    char third[256];
    strcpy(third, entry->d_name);
    while (readdir(stream))
        ;
    seekdir(stream, place);
    CHECK((entry = readdir(stream)) && !strcmp(entry->d_name, third));
    CHECK(entry->d_off == telldir(stream));
    CHECK(closedir(stream) == 0);
    stream = opendir("/dev");
    place = telldir(stream);
    CHECK((entry = readdir(stream)));
    strcpy(third, entry->d_name);
    CHECK(count(stream, "iommu") == 1);
    long end = telldir(stream);
    CHECK(!readdir(stream));
    seekdir(stream, place);
    CHECK((entry = readdir(stream)) && !strcmp(entry->d_name, third) && count(stream, "iommu") == 1);
    seekdir(stream, end);
    CHECK(!readdir(stream) && closedir(stream) == 0);

    /* By descriptor. */
    fd = open("/dev", O_RDONLY | O_DIRECTORY);
    CHECK((stream = fdopendir(fd)) && count(stream, "iommu") == 1 && closedir(stream) == 0);
    fd = open("/dev/vfio/devices", O_RDONLY);
    CHECK(fd >= 0 && (stream = fdopendir(fd)) && count(stream, "noiommu-vfio977") == 1 && closedir(stream) == 0);
    FAILS(close(fd), EBADF);

    /* The old function. */
    stream = opendir("/dev/vfio/devices");
    struct dirent space;
    int names = 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    while (readdir_r(stream, &space, &entry) == 0 && entry)
        names += !strcmp(space.d_name, "noiommu-vfio977");
#pragma GCC diagnostic pop
    CHECK(names == 1 && closedir(stream) == 0);

    /* Lists for others. */
    struct dirent **list;
    int length = scandir("/dev/vfio", &list, all, alphasort);
    CHECK(length == 3 && !strcmp(list[0]->d_name, "devices") && !strcmp(list[2]->d_name, "vfio"));
    while (length)
        free(list[--length]);
    free(list);
    length = scandir("/", &list, NULL, NULL);
    CHECK(length > 3);
    while (length)
        free(list[--length]);
    free(list);
    FAILS(scandir("/dev/vfio/nothing", &list, NULL, NULL), ENOENT);
    glob_t paths;
    CHECK(glob("/dev/vfio/noiommu-*", 0, NULL, &paths) == 0 && paths.gl_pathc == 1 && !strcmp(paths.gl_pathv[0], GROUP));
    globfree(&paths);
    CHECK(glob("/dev/*/dev*/no*vfio*", GLOB_MARK, NULL, &paths) == 0 && !strcmp(paths.gl_pathv[0], DEVICE));
    globfree(&paths);
    CHECK(glob("/dev/nul*", 0, NULL, &paths) == 0 && paths.gl_pathc == 1);
    globfree(&paths);
    CHECK(glob("/dev/vfio/x*", 0, NULL, &paths) == GLOB_NOMATCH);

    errno = 0;
    CHECK(!opendir("/dev/vfio/nothing") && errno == ENOENT);
    CHECK(!opendir(IOMMU) && errno == ENOTDIR);
    CHECK((fd = dup(0)) == lowest);
    return 0;
}
