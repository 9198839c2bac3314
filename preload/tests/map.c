/* Mappings of a served file: they keep it open, whole, in parts, moved and replaced. */
#include "check.h"
#include <sys/mman.h>

#define PAGE 4096

static char *map(void *at, size_t pages, int flags, int fd, off_t page) {
    return mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, page * PAGE);
}

int main(void) {
    int fd = open(DEVICE, O_RDWR), calls = open(IOMMU, O_RDWR);
    CHECK(fd >= 0 && calls >= 0 && live() == 2);
    FAILS(map(NULL, 1, 0, calls, 0), ENODEV);
    CHECK(close(calls) == 0);

    char *memory = map(NULL, 4, 0, fd, 2);
    CHECK(memory != MAP_FAILED);
    memcpy(memory, "mapped", 6);
    char in[8];
    CHECK(pread(fd, in, 6, 2 * PAGE) == 6 && !memcmp(in, "mapped", 6));
    CHECK(close(fd) == 0 && live() == 1);
    memory[PAGE] = 1;

    /* Pieces of it. */
    CHECK(munmap(memory + PAGE, 2 * PAGE) == 0 && live() == 1);
    CHECK(munmap(memory, 1) == 0 && live() == 1);
    CHECK(munmap(memory + 3 * PAGE, PAGE) == 0 && live() == 0);

    /* Replaced by something else, with memory next to it. */
    fd = open(DEVICE, O_RDWR);
    memory = map(NULL, 3, 0, fd, 0);
    CHECK(close(fd) == 0 && live() == 1);
    CHECK(mmap(memory, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory && live() == 1);
    FAILS(mmap(memory, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
    CHECK(mmap(memory, 3 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory && live() == 0);
    /* By another file of ours. */
    fd = open(DEVICE, O_RDWR);
    int other = open(DEVICE, O_RDWR);
    CHECK(map(memory, 3, MAP_FIXED, fd, 0) == memory && close(fd) == 0 && live() == 2);
    CHECK(map(memory, 2, MAP_FIXED, other, 0) == memory && live() == 2);
    CHECK(map(memory + 2 * PAGE, 1, MAP_FIXED, other, 0) == memory + 2 * PAGE && live() == 1);
    CHECK(close(other) == 0 && live() == 1 && munmap(memory, 3 * PAGE) == 0 && live() == 0);

    /* Moved. */
    fd = open(DEVICE, O_RDWR);
    memory = map(NULL, 2, 0, fd, 0);
    memory[0] = 'm';
    char *place = mmap(NULL, 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(close(fd) == 0);
    CHECK(mremap(memory, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
    CHECK(place[0] == 'm' && live() == 1);
    CHECK(munmap(memory, 2 * PAGE) == 0 && live() == 1);
    /* Smaller, larger, once more. */
    CHECK(mremap(place, 2 * PAGE, PAGE, 0) == place && live() == 1);
    char *larger = mremap(place, PAGE, 3 * PAGE, MREMAP_MAYMOVE);
    CHECK(larger != MAP_FAILED && larger[0] == 'm' && live() == 1);
    char *twice = mremap(larger, 0, PAGE, MREMAP_MAYMOVE);
    CHECK(twice != MAP_FAILED && twice[0] == 'm' && live() == 1);
    CHECK(munmap(larger, 3 * PAGE) == 0 && live() == 1 && twice[0] == 'm');
    CHECK(munmap(twice, PAGE) == 0 && live() == 0);

    /* What the kernel says without asking the file. */
    fd = open(DEVICE, O_RDWR);
    FAILS(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0), EINVAL);
    FAILS(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 1), EINVAL);
    FAILS(mmap(NULL, PAGE, PROT_READ, 0, fd, 0), EINVAL);
    FAILS(mmap(NULL, (size_t)-1, PROT_READ, MAP_SHARED, fd, 0), ENOMEM);
    int only = open(DEVICE, O_RDONLY);
    FAILS(map(NULL, 1, 0, only, 0), EACCES);
    CHECK((memory = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, only, 0)) != MAP_FAILED);
    CHECK(close(only) == 0 && munmap(memory, PAGE) == 0);
    only = open(DEVICE, O_WRONLY);
    FAILS(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, only, 0), EACCES);
    CHECK(close(only) == 0);
    FAILS(munmap(memory + 1, PAGE), EINVAL);
    CHECK(mmap64(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED);
    /* With MAP_ANONYMOUS the descriptor is not looked at. */
    memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
    CHECK(memory != MAP_FAILED && close(fd) == 0 && live() == 1);
    memory[0] = 1;
    CHECK(munmap(memory, PAGE) == 0 && live() == 1);
    return 0;
}
