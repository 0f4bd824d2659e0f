/* The CNI plugin that containerd executes: carries one call to the agent's socket and its answer back.
 *
 * Sends every CNI_* variable, each ended by a zero byte, one more zero byte, then standard input. The first byte of the
 * answer is the exit code, the rest goes to standard output. Without the agent it answers with the CNI error 11, "try
 * again later", so the runtime retries. No libc: starting takes a quarter of a millisecond and 1.5 kB of disk.
 * The socket's path is patched into `where` when the plugin is installed. Build: python -m netsetup.cni.build
 */
typedef unsigned long word;
typedef long number;

enum { READ = 0, WRITE = 1, SOCKET = 41, CONNECT = 42, SHUTDOWN = 48, EXIT_GROUP = 231, INTERRUPTED = -4 };
enum { LIMIT = 1 << 20 };

static number call(number n, number a, number b, number c) {
    number result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

struct address { unsigned short family; char path[108]; };
static struct address where = { 1, "@PELAMIS-CNI-SOCKET@" };
static char data[LIMIT];
static const char away[] =
    "{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"the node agent does not answer\","
    "\"details\":\"pods get their network when pelamis runs again\"}";

static number receive(number from, number used) {
    number got;
    while (used < LIMIT && (got = call(READ, from, (number)(data + used), LIMIT - used)) != 0) {
        if (got > 0) used += got;
        else if (got != INTERRUPTED) break;
    }
    return used;
}

static int deliver(number to, const char *from, number length) {
    number sent;
    for (number done = 0; done < length;) {
        sent = call(WRITE, to, (number)(from + done), length - done);
        if (sent > 0) done += sent;
        else if (sent != INTERRUPTED) return 0;
    }
    return 1;
}

static void give_up(void) {
    deliver(1, away, sizeof away - 1);
    call(EXIT_GROUP, 1, 0, 0);
}

__attribute__((used)) void begin(word *stack) {
    char **variable = (char **)(stack + 1 + stack[0] + 1);
    number used = 0, link;
    for (; *variable; variable++) {
        char *text = *variable;
        if (text[0] != 'C' || text[1] != 'N' || text[2] != 'I' || text[3] != '_') continue;
        while (*text && used < LIMIT / 2) data[used++] = *text++;
        data[used++] = 0;
    }
    data[used++] = 0;
    used = receive(0, used);
    link = call(SOCKET, 1, 1, 0);
    if (link < 0 || call(CONNECT, link, (number)&where, sizeof where) < 0 || !deliver(link, data, used)) give_up();
    call(SHUTDOWN, link, 1, 0);
    used = receive(link, 0);
    if (used == 0) give_up();
    deliver(1, data + 1, used - 1);
    call(EXIT_GROUP, data[0], 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
