/* A device's side of TVM's RPC, without Python and without a port: RPC on standard input and output, so that
 * `ssh host agent FOLDER` is the whole transport. It is there as long as its connection is.
 *
 *   agent FOLDER      FOLDER has TVM's libtvm_ffi.so and libtvm_runtime.so; uploads go to a new folder in it
 *
 * Everything is TVM's own server loop (`rpc.ServerLoop`) but the two functions that say where files are: names with
 * a '/' or a leading '.' are refused. The loop wants a socket, so a pair of them stands between it and the pipes.
 * TVM is reached by tvm-ffi's stable C ABI, looked up at run time: nothing of it is needed to compile this. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- tvm-ffi's C ABI ------------------------------------------------------------------------------------ */

typedef struct { int32_t type; uint32_t small_length; union { int64_t integer; const char *text; void *object; char bytes[8]; } value; } any;
typedef struct { const char *data; size_t size; } byte_array;
typedef int (*safe_call)(void *self, const any *arguments, int32_t count, any *result);
enum { NONE = 0, INT = 1, RAW_STRING = 8, SMALL_STRING = 11, STRING = 65, OBJECT_HEADER = 24 };

static int (*function_create)(void *, safe_call, void (*)(void *), void **);
static int (*function_get)(const byte_array *, void **);
static int (*function_set)(const byte_array *, void *, int);
static int (*function_call)(void *, any *, int32_t, any *);
static int (*string_create)(const byte_array *, any *);
static void (*raise_error)(const char *, const char *);

static char work[4096]; /* where uploads go */

static _Noreturn void die(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    _exit(1);
}

static byte_array bytes_of(const char *text) { return (byte_array){text, strlen(text)}; }

/* The path of the file that a client calls by the first argument; 0 if that is no plain name. */
static int path_of(const any *arguments, int32_t count, char path[static 4400]) {
    byte_array name = {0};
    if (count == 1 && arguments->type == SMALL_STRING)
        name = (byte_array){arguments->value.bytes, arguments->small_length};
    if (count == 1 && arguments->type == STRING)
        name = *(const byte_array *)(const void *)((const char *)arguments->value.object + OBJECT_HEADER);
    if (count == 1 && arguments->type == RAW_STRING) name = bytes_of(arguments->value.text);
    if (!name.size || name.size > 200 || name.data[0] == '.' || memchr(name.data, '/', name.size) ||
        memchr(name.data, 0, name.size)) {
        raise_error("ValueError", "a file's name has no '/' and does not begin with '.'");
        return 0;
    }
    snprintf(path, 4400, "%s/%.*s", work, (int)name.size, name.data);
    return 1;
}

static int workpath(void *self, const any *arguments, int32_t count, any *result) {
    (void)self;
    char path[4400];
    if (!path_of(arguments, count, path)) return -1;
    byte_array whole = bytes_of(path);
    return string_create(&whole, result);
}

static int load_module(void *self, const any *arguments, int32_t count, any *result) {
    (void)self;
    char path[4400];
    void *loader = NULL;
    byte_array name = bytes_of("ffi.ModuleLoadFromFile");
    if (!path_of(arguments, count, path) || function_get(&name, &loader)) return -1;
    any argument = {.type = RAW_STRING, .value.text = path};
    return function_call(loader, &argument, 1, result);
}

static void provide(const char *name, safe_call call) {
    void *function = NULL;
    byte_array text = bytes_of(name);
    if (function_create(NULL, call, NULL, &function) || function_set(&text, function, 1)) die(name, "cannot be registered");
}

static void *open_library(const char *folder, const char *name) {
    char path[4400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library) die(name, dlerror());
    return library;
}

static void find(void *library, const char *name, void *place) {
    void *found = dlsym(library, name);
    if (!found) die(name, "this libtvm_ffi.so does not have it");
    memcpy(place, &found, sizeof found);
}

/* ---- pipes and sockets ---------------------------------------------------------------------------------- */

static void copy(int from, int to) {
    static _Thread_local char buffer[1 << 16];
    for (ssize_t got; (got = read(from, buffer, sizeof buffer)) > 0 || (got < 0 && errno == EINTR);)
        for (ssize_t done = 0; done < got;) {
            ssize_t part = write(to, buffer + done, (size_t)(got - done));
            if (part < 0 && errno == EINTR) continue;
            if (part <= 0) return;
            done += part;
        }
}

static int ends[2], output;

static void *incoming(void *nothing) {
    copy(0, ends[0]);
    shutdown(ends[0], SHUT_WR);
    sleep(2); /* the client has gone; a kernel that still runs has nobody to answer */
    _exit(0);
    return nothing;
}

static void *outgoing(void *nothing) {
    copy(ends[0], output);
    close(output);
    return nothing;
}

static void serve(const char *folder) {
    void *ffi = open_library(folder, "libtvm_ffi.so");
    open_library(folder, "libtvm_runtime.so");
    find(ffi, "TVMFFIFunctionCreate", &function_create);
    find(ffi, "TVMFFIFunctionGetGlobal", &function_get);
    find(ffi, "TVMFFIFunctionSetGlobal", &function_set);
    find(ffi, "TVMFFIFunctionCall", &function_call);
    find(ffi, "TVMFFIStringFromByteArray", &string_create);
    find(ffi, "TVMFFIErrorSetRaisedFromCStr", &raise_error);
    provide("tvm.rpc.server.workpath", workpath);
    provide("tvm.rpc.server.load_module", load_module);

    output = dup(1);
    dup2(2, 1); /* nothing else may write into the channel */
    pthread_t in, out;
    if (output < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) die("a socket", strerror(errno));
    if (pthread_create(&in, NULL, incoming, NULL) || pthread_create(&out, NULL, outgoing, NULL))
        die("a thread", strerror(errno));
    void *loop = NULL;
    byte_array name = bytes_of("rpc.ServerLoop");
    if (function_get(&name, &loop) || !loop) die("rpc.ServerLoop", "this libtvm_runtime.so does not have it");
    any socket_number = {.type = INT, .value.integer = ends[1]}, result = {0};
    int failed = function_call(loop, &socket_number, 1, &result);
    shutdown(ends[1], SHUT_RDWR);
    pthread_join(out, NULL);
    _exit(failed ? 1 : 0);
}

/* ---- the watch: tidies up whatever becomes of the server --------------------------------------------------- */

static void remove_work(void) {
    DIR *folder = opendir(work);
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) unlinkat(dirfd(folder), entry->d_name, 0);
    if (folder) closedir(folder);
    rmdir(work);
}

int main(int argc, char **argv) {
    if (argc != 2) die("agent", "give the folder of TVM's libraries");
    snprintf(work, sizeof work, "%s/work.XXXXXX", argv[1]);
    if (!mkdtemp(work)) die(work, strerror(errno));
    signal(SIGPIPE, SIG_IGN);
    pid_t parent = getpid(), child = fork();
    if (child < 0) die("fork", strerror(errno));
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        serve(argv[1]);
    }
    close(0);
    close(1);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    remove_work();
    if (WIFSIGNALED(status)) fprintf(stderr, "%s\n", strsignal(WTERMSIG(status)));
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
