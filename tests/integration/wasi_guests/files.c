/* Files of a WASI guest whose buffers the host chooses. Built with:
   python -m ziglang cc -target wasm32-wasi -Os -s -mexec-model=reactor -o files.wasm files.c */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT(name) __attribute__((export_name(#name)))

EXPORT(copy_file) int copy_file(const char *from, const char *to, char *buffer, int size) {
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0666), total = 0;
    if (in < 0 || out < 0) return -errno;
    for (ssize_t got; (got = read(in, buffer, size)) > 0; total += got)
        for (ssize_t done = 0, now; done < got; done += now)
            if ((now = write(out, buffer + done, got - done)) <= 0) return -errno;
    close(in), close(out);
    return total;
}

EXPORT(size_of) int size_of(const char *path, struct stat *status) { return stat(path, status) ? -errno : status->st_size; }

EXPORT(randomize) int randomize(char *bytes, int size) { return getentropy(bytes, size); }

EXPORT(append) int append(const char *path, struct iovec *parts, int count) {
    int out = open(path, O_WRONLY | O_CREAT | O_APPEND, 0666), written = writev(out, parts, count);
    close(out);
    return written;
}
