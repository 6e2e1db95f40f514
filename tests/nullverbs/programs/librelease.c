/* cc: -ldl */
/* Says that the kernel is of a release whose soft-RoCE the shim knows well enough to protect shared receives. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char release[] = "6.12.117\n";

static int of_release(int flags)
{
    int file = memfd_create("osrelease", flags & O_CLOEXEC ? MFD_CLOEXEC : 0);

    if (file >= 0 && (write(file, release, sizeof(release) - 1) < 0 || lseek(file, 0, SEEK_SET) < 0))
        return -1;
    return file;
}

int open64(const char *path, int flags, ...)
{
    int (*behind)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    va_list list;
    int mode;

    if (!strcmp(path, "/proc/sys/kernel/osrelease"))
        return of_release(flags);
    va_start(list, flags);
    mode = va_arg(list, int);
    va_end(list);
    return behind(path, flags, mode);
}
