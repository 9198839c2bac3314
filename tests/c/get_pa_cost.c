/*
 * Times IOMMU_IOAS_NOIOMMU_GET_PA of one page, whoever answers it.
 *
 *     get_pa_cost BDF ROUNDS CALLS
 *
 * A program against the plain uAPI of Linux 7.3, with the VFIO cdev of the PCI device BDF: it maps 4 MiB of pages that it has
 * touched, checks every answer against /proc/self/pagemap, and then times ROUNDS rounds of CALLS calls each, page after page in a
 * scattered order. Prints one line of JSON: nanoseconds a call for each round, and for each round those of a system call that does
 * nothing, as a yardstick of this machine. It needs CAP_SYS_RAWIO, and CAP_SYS_ADMIN for the check.
 *
 * The exit code is 0, or 1 with a sentence on stderr.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* The uAPI, as far as it is used here: headers of distributions are older than the calls. */
#define CALL(number) _IO(';', number)

struct bind_iommufd { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; };
struct attach { uint32_t argsz, flags, pt_id, pasid; };
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct ioas_map { uint32_t size, flags, ioas_id, reserved; uint64_t user_va, length, iova; };
struct get_pa { uint32_t size, flags, ioas_id, reserved; uint64_t iova, length, out_phys; };

#define DEVICE_BIND_IOMMUFD	CALL(118)
#define DEVICE_ATTACH_PT	CALL(119)
#define IOAS_ALLOC		CALL(0x81)
#define IOAS_MAP		CALL(0x85)
#define IOAS_NOIOMMU_GET_PA	CALL(0x95)

#define MAP_FLAG_WRITEABLE	2u
#define MAP_FLAG_READABLE	4u

_Static_assert(sizeof(struct ioas_map) == 40 && sizeof(struct get_pa) == 40, "as in the uAPI");

#define PAGE	4096u
#define PAGES	1024u	/* a power of two */
#define STRIDE	389u	/* odd, so that every page has its turn */

/* A page table entry of the pagemap: the frame, and whether there is one. */
#define FRAME	((UINT64_C(1) << 55) - 1)
#define PRESENT	(UINT64_C(1) << 63)

__attribute__((noreturn, format(printf, 1, 2)))
static void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("get_pa_cost: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(1);
}

static void call(int fd, unsigned long request, void *argument, const char *name)
{
	if (ioctl(fd, request, argument) < 0)
		fail("%s: %s", name, strerror(errno));
}

/* Opens the cdev that the PCI device's directory in sysfs names. */
static int open_cdev(const char *bdf)
{
	char path[512], name[128] = "";
	struct dirent *entry;
	DIR *directory;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", bdf);
	directory = opendir(path);
	if (!directory)
		fail("%s: %s (is the device given to vfio-pci?)", path, strerror(errno));
	while ((entry = readdir(directory)))
		if (entry->d_name[0] != '.')
			snprintf(name, sizeof(name), "%.100s", entry->d_name);
	closedir(directory);

	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fail("%s: %s", path, strerror(errno));
	return fd;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static int iommufd;
static uint32_t ioas_id;
static uint64_t first_iova;

/* The physical address of a page. */
static uint64_t get_pa(unsigned page)
{
	struct get_pa get = {
		.size = sizeof(get), .ioas_id = ioas_id, .iova = first_iova + (uint64_t)page * PAGE, .length = PAGE,
	};

	call(iommufd, IOAS_NOIOMMU_GET_PA, &get, "IOMMU_IOAS_NOIOMMU_GET_PA");
	if (get.length != PAGE)
		fail("GET_PA of a page answers %llu bytes", (unsigned long long)get.length);
	return get.out_phys;
}

/* Holds every answer against what the kernel says of this process's own pages. */
static void check(const uint8_t *memory)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entries[PAGES];

	if (pagemap < 0 || pread(pagemap, entries, sizeof(entries), (off_t)((uintptr_t)memory / PAGE * 8)) != sizeof(entries))
		fail("/proc/self/pagemap: %s", strerror(errno));
	close(pagemap);
	for (unsigned page = 0; page < PAGES; page++) {
		uint64_t physical = get_pa(page);

		if (!(entries[page] & PRESENT) || !(entries[page] & FRAME) || (entries[page] & FRAME) * PAGE != physical)
			fail("page %u is at %#llx by its pagemap entry %#llx", page, (unsigned long long)physical,
			     (unsigned long long)entries[page]);
	}
}

static double time_get_pa(unsigned calls)
{
	unsigned page = 0;
	double began = now();

	for (unsigned i = 0; i < calls; i++) {
		get_pa(page);
		page = (page + STRIDE) % PAGES;
	}
	return (now() - began) / calls;
}

static double time_nothing(unsigned calls)
{
	double began = now();

	for (unsigned i = 0; i < calls; i++)
		getppid();
	return (now() - began) / calls;
}

static void print(const char *name, const double *times, unsigned rounds)
{
	printf("\"%s\":[", name);
	for (unsigned round = 0; round < rounds; round++)
		printf("%s%.1f", round ? "," : "", times[round]);
	putchar(']');
}

int main(int argc, char **argv)
{
	enum { MOST = 1000 };
	static double answers[MOST], nothing[MOST];

	if (argc != 4)
		fail("usage: get_pa_cost BDF ROUNDS CALLS");
	unsigned rounds = (unsigned)atoi(argv[2]), calls = (unsigned)atoi(argv[3]);
	if (!rounds || rounds > MOST || !calls)
		fail("1 to %u rounds, and some calls", MOST);

	iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (iommufd < 0)
		fail("/dev/iommu: %s", strerror(errno));
	int device = open_cdev(argv[1]);
	struct bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommufd };
	call(device, DEVICE_BIND_IOMMUFD, &bind, "VFIO_DEVICE_BIND_IOMMUFD");
	struct ioas_alloc ioas = { .size = sizeof(ioas) };
	call(iommufd, IOAS_ALLOC, &ioas, "IOMMU_IOAS_ALLOC");
	struct attach attach = { .argsz = offsetof(struct attach, pasid), .pt_id = ioas.out_ioas_id };
	call(device, DEVICE_ATTACH_PT, &attach, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");

	uint8_t *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	/* A kernel without huge pages refuses, and has none. */
	madvise(memory, PAGES * PAGE, MADV_NOHUGEPAGE);
	memset(memory, 1, PAGES * PAGE);
	struct ioas_map map = {
		.size = sizeof(map), .flags = MAP_FLAG_READABLE | MAP_FLAG_WRITEABLE, .ioas_id = ioas.out_ioas_id,
		.user_va = (uintptr_t)memory, .length = PAGES * PAGE,
	};
	call(iommufd, IOAS_MAP, &map, "IOMMU_IOAS_MAP");
	ioas_id = ioas.out_ioas_id;
	first_iova = map.iova;

	check(memory);
	/* Warm. */
	time_get_pa(calls);
	time_nothing(calls);
	for (unsigned round = 0; round < rounds; round++) {
		answers[round] = time_get_pa(calls);
		nothing[round] = time_nothing(calls);
	}
	check(memory);
	putchar('{');
	print("get_pa", answers, rounds);
	putchar(',');
	print("syscall", nothing, rounds);
	puts("}");
	return 0;
}
