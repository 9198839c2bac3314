/*
 * Asks an NVMe controller who it is, by DMA to an address from IOMMU_IOAS_NOIOMMU_GET_PA.
 *
 *     nvme_identify BDF SERIAL [MODEL]
 *
 * A program against the plain uAPI of Linux 7.3: /dev/iommu, the VFIO cdev of the PCI device BDF, which is given to
 * vfio-pci already, and nothing else. It knows nothing of who answers these calls, and so must work the same wherever
 * they are answered. It needs CAP_SYS_RAWIO.
 *
 * The exit code tells how far it came, see the enum below; a sentence on stderr tells why it went no further.
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

enum {
	PASSED = 0,
	USAGE = 2,
	NO_IOMMUFD = 3,		/* /dev/iommu does not open */
	NO_CDEV = 4,		/* the device has no VFIO cdev */
	CDEV_REFUSED = 5,	/* its node does not open */
	CALL_REFUSED = 6,	/* a call of the uAPI answers an error, or something impossible */
	NOT_READY = 7,		/* the controller does not come up, does not answer or does not go down */
	COMMAND_FAILED = 8,	/* it answers with an error */
	SOMEBODY_ELSE = 9,	/* it answers, but is another one */
};

/*
 * The uAPI, as far as it is used here. Headers of distributions are older than the calls, so that the numbers and
 * layouts are spelt out.
 */
#define CALL(number) _IO(';', number)

struct bind_iommufd { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; };
struct attach { uint32_t argsz, flags, pt_id, pasid; };
struct region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct ioas_map { uint32_t size, flags, ioas_id, reserved; uint64_t user_va, length, iova; };
struct ioas_unmap { uint32_t size, ioas_id; uint64_t iova, length; };
struct get_pa { uint32_t size, flags, ioas_id, reserved; uint64_t iova, length, out_phys; };

#define DEVICE_GET_REGION_INFO	CALL(108)
#define DEVICE_BIND_IOMMUFD	CALL(118)
#define DEVICE_ATTACH_PT	CALL(119)
#define IOAS_ALLOC		CALL(0x81)
#define IOAS_MAP		CALL(0x85)
#define IOAS_UNMAP		CALL(0x86)
#define IOAS_NOIOMMU_GET_PA	CALL(0x95)

#define REGION_FLAG_MMAP	4u
#define MAP_FLAG_WRITEABLE	2u
#define MAP_FLAG_READABLE	4u
#define BAR0			0u
#define CONFIG_SPACE		7u

/* PCI's command register. */
#define COMMAND			4
#define COMMAND_MEMORY		2u
#define COMMAND_MASTER		4u

/* NVMe's registers and what is used of them. */
#define CAP			0x00
#define CC			0x14
#define CSTS			0x1c
#define AQA			0x24
#define ASQ			0x28
#define ACQ			0x30
#define DOORBELLS		0x1000
#define CC_ENABLE		1u
#define CC_ENTRY_SIZES		(6u << 16 | 4u << 20)	/* 64 and 16 bytes */
#define CSTS_READY		1u
#define CSTS_FATAL		2u

#define PAGE			4096u
#define ENTRIES			16u	/* of each queue */

struct command {
	uint8_t opcode, flags;
	uint16_t id;
	uint32_t nsid, reserved[4];
	uint64_t prp1, prp2;
	uint32_t cdw10[6];
};

struct completion { uint32_t result, reserved; uint16_t sq_head, sq_id, id, status; };

_Static_assert(sizeof(struct region_info) == 32, "as in the uAPI");
_Static_assert(sizeof(struct ioas_map) == 40 && sizeof(struct ioas_unmap) == 24, "as in the uAPI");
_Static_assert(sizeof(struct get_pa) == 40, "as in the uAPI");
_Static_assert(sizeof(struct command) == 64 && sizeof(struct completion) == 16, "as in the specification");

__attribute__((noreturn, format(printf, 2, 3)))
static void fail(int code, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("nvme_identify: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(code);
}

static void call(int fd, unsigned long request, void *argument, const char *name)
{
	if (ioctl(fd, request, argument) < 0)
		fail(CALL_REFUSED, "%s: %s", name, strerror(errno));
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
		fail(NO_CDEV, "%s: %s (is the device given to vfio-pci?)", path, strerror(errno));
	while ((entry = readdir(directory)))
		if (entry->d_name[0] != '.')
			snprintf(name, sizeof(name), "%.100s", entry->d_name);
	closedir(directory);
	if (!name[0])
		fail(NO_CDEV, "%s names no cdev", path);

	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fail(CDEV_REFUSED, "%s: %s", path, strerror(errno));
	printf("cdev %s\n", path);
	return fd;
}

static struct region_info region(int device, uint32_t index)
{
	struct region_info info = { .argsz = sizeof(info), .index = index };

	call(device, DEVICE_GET_REGION_INFO, &info, "VFIO_DEVICE_GET_REGION_INFO");
	return info;
}

/* Switches bus mastering (and memory space, which stays on). */
static void set_bus_master(int device, uint64_t config, int on)
{
	uint16_t wanted, found;

	if (pread(device, &wanted, sizeof(wanted), config + COMMAND) != sizeof(wanted))
		fail(CALL_REFUSED, "reading config space: %s", strerror(errno));
	wanted = (wanted | COMMAND_MEMORY) & ~COMMAND_MASTER;
	if (on)
		wanted |= COMMAND_MASTER;
	if (pwrite(device, &wanted, sizeof(wanted), config + COMMAND) != sizeof(wanted))
		fail(CALL_REFUSED, "writing config space: %s", strerror(errno));
	if (pread(device, &found, sizeof(found), config + COMMAND) != sizeof(found))
		fail(CALL_REFUSED, "reading config space: %s", strerror(errno));
	if ((found ^ wanted) & (COMMAND_MASTER | COMMAND_MEMORY))
		fail(CALL_REFUSED, "the command register reads %#x after %#x", found, wanted);
}

static volatile uint8_t *registers;

static uint32_t read32(unsigned at) { return *(volatile uint32_t *)(registers + at); }
static void write32(unsigned at, uint32_t value) { *(volatile uint32_t *)(registers + at) = value; }

/* By halves, low first, which every controller takes. */
static uint64_t read64(unsigned at) { return read32(at) | (uint64_t)read32(at + 4) << 32; }

static void write64(unsigned at, uint64_t value)
{
	write32(at, (uint32_t)value);
	write32(at + 4, (uint32_t)(value >> 32));
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Waits until the controller's ready bit is `ready`. */
static void wait_ready(uint32_t ready, double seconds)
{
	double late = now() + seconds;
	uint32_t status;

	while (((status = read32(CSTS)) & CSTS_READY) != ready) {
		if (status == UINT32_MAX)
			fail(NOT_READY, "the controller is gone");
		if (ready && (status & CSTS_FATAL))
			fail(NOT_READY, "the controller reports a fatal status (CSTS %#x)", status);
		if (now() > late)
			fail(NOT_READY, "not %sready within %.1f s (CSTS %#x)", ready ? "" : "un", seconds, status);
		usleep(1000);
	}
}

/* Compares a field padded with blanks. */
static void expect(const char *what, const uint8_t *field, size_t length, const char *wanted)
{
	while (length && field[length - 1] == ' ')
		length--;
	printf("%s '%.*s'\n", what, (int)length, (const char *)field);
	if (length != strlen(wanted) || memcmp(field, wanted, length))
		fail(SOMEBODY_ELSE, "the %s is not '%s'", what, wanted);
}

int main(int argc, char **argv)
{
	if (argc < 3 || argc > 4)
		fail(USAGE, "usage: nvme_identify BDF SERIAL [MODEL]");
	const char *serial = argv[2], *model = argc == 4 ? argv[3] : "QEMU NVMe Ctrl";

	int iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (iommufd < 0)
		fail(NO_IOMMUFD, "/dev/iommu: %s", strerror(errno));
	int device = open_cdev(argv[1]);

	struct bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommufd };
	call(device, DEVICE_BIND_IOMMUFD, &bind, "VFIO_DEVICE_BIND_IOMMUFD");
	struct ioas_alloc ioas = { .size = sizeof(ioas) };
	call(iommufd, IOAS_ALLOC, &ioas, "IOMMU_IOAS_ALLOC");
	struct attach attach = { .argsz = offsetof(struct attach, pasid), .pt_id = ioas.out_ioas_id };
	call(device, DEVICE_ATTACH_PT, &attach, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");

	/* One page for each: commands, completions, the answer. */
	enum { COMMANDS, COMPLETIONS, ANSWER, PAGES };
	uint8_t *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail(CALL_REFUSED, "mmap: %s", strerror(errno));
	memset(memory, 0, ANSWER * PAGE);
	/* Not zeros: what the device does not write shall not look like an empty answer. */
	memset(memory + ANSWER * PAGE, 0xaa, PAGE);
	struct ioas_map map = {
		.size = sizeof(map), .flags = MAP_FLAG_READABLE | MAP_FLAG_WRITEABLE, .ioas_id = ioas.out_ioas_id,
		.user_va = (uintptr_t)memory, .length = PAGES * PAGE,
	};
	call(iommufd, IOAS_MAP, &map, "IOMMU_IOAS_MAP");

	/* The pages need not lie together: each is asked for. */
	uint64_t physical[PAGES];
	for (unsigned page = 0; page < PAGES; page++) {
		struct get_pa get = {
			.size = sizeof(get), .ioas_id = ioas.out_ioas_id,
			.iova = map.iova + page * PAGE, .length = PAGE,
		};
		call(iommufd, IOAS_NOIOMMU_GET_PA, &get, "IOMMU_IOAS_NOIOMMU_GET_PA");
		if (get.length != PAGE || get.out_phys % PAGE)
			fail(CALL_REFUSED, "GET_PA answers %llu bytes at %#llx for a page", (unsigned long long)get.length,
			     (unsigned long long)get.out_phys);
		physical[page] = get.out_phys;
		printf("iova %#llx is at %#llx\n", (unsigned long long)get.iova, (unsigned long long)get.out_phys);
	}

	struct region_info bar = region(device, BAR0), config = region(device, CONFIG_SPACE);
	if (!(bar.flags & REGION_FLAG_MMAP) || bar.size < DOORBELLS + PAGE)
		fail(CALL_REFUSED, "BAR0 has %llu bytes and flags %#x", (unsigned long long)bar.size, bar.flags);
	registers = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
	if (registers == MAP_FAILED)
		fail(CALL_REFUSED, "mapping BAR0: %s", strerror(errno));
	set_bus_master(device, config.offset, 1);

	uint64_t capabilities = read64(CAP);
	unsigned stride = 4u << (capabilities >> 32 & 0xf);
	double patience = (double)(capabilities >> 24 & 0xff) / 2 + 5;
	if (capabilities == UINT64_MAX || (capabilities >> 48 & 0xf))
		fail(NOT_READY, "no controller for pages of 4 KiB (CAP %#llx)", (unsigned long long)capabilities);
	write32(CC, 0);
	wait_ready(0, patience);
	write32(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
	write64(ASQ, physical[COMMANDS]);
	write64(ACQ, physical[COMPLETIONS]);
	write32(CC, CC_ENABLE | CC_ENTRY_SIZES);
	wait_ready(CSTS_READY, patience);

	/* Identify (6), of the controller (1). */
	struct command identify = { .opcode = 6, .id = 0x4e49, .prp1 = physical[ANSWER], .cdw10 = { 1 } };
	memcpy(memory + COMMANDS * PAGE, &identify, sizeof(identify));
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	write32(DOORBELLS, 1);

	volatile struct completion *completion = (void *)(memory + COMPLETIONS * PAGE);
	double late = now() + patience;
	uint16_t status;
	/* The phase bit of an entry turns when it is written. */
	while (!((status = completion->status) & 1)) {
		if (now() > late)
			fail(NOT_READY, "no completion within %.1f s (CSTS %#x)", patience, read32(CSTS));
		usleep(1000);
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (completion->id != identify.id || status >> 1)
		fail(COMMAND_FAILED, "Identify completed as command %#x with status %#x", completion->id, status >> 1);
	write32(DOORBELLS + stride, 1);

	const uint8_t *answer = memory + ANSWER * PAGE;
	expect("serial number", answer + 4, 20, serial);
	expect("model number", answer + 24, 40, model);

	/* Nothing may be under way when the memory goes. */
	write32(CC, 0);
	wait_ready(0, patience);
	set_bus_master(device, config.offset, 0);
	struct ioas_unmap unmap = {
		.size = sizeof(unmap), .ioas_id = ioas.out_ioas_id, .iova = map.iova, .length = map.length,
	};
	call(iommufd, IOAS_UNMAP, &unmap, "IOMMU_IOAS_UNMAP");
	if (unmap.length != map.length)
		fail(CALL_REFUSED, "IOMMU_IOAS_UNMAP took %llu bytes away", (unsigned long long)unmap.length);
	munmap((void *)registers, bar.size);
	close(device);
	close(iommufd);
	puts("passed");
	return PASSED;
}
