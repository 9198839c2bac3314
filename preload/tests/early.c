/* Before main: constructors of the program, of a library that is set up before the preload library, and a lazy symbol. */
#include "check.h"

static int early = -1, plain = -1;

__attribute__((constructor)) static void construct(void) {
    plain = open("/dev/zero", O_RDONLY);
    early = open(IOMMU, O_RDWR);
}

__attribute__((destructor)) static void destruct(void) {
    /* The program's destructors run before ours. */
    CHECK(is_echo(early));
}

int main(void) {
    CHECK(plain >= 0 && early >= 0 && is_echo(early));
    return 0;
}
